"""`hf-losses run`: runs an unmodified script whose `Trainer` then uses another loss."""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.util
import inspect
import io
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from hf_losses.losses.registry import parse_loss_kwargs
from hf_losses.messages import UsageError
from hf_losses.script.source import starts_processes, starts_training, trains_without_trainer
from hf_losses.training.loss.choose import loss_of_arguments
from hf_losses.training.loss.warmup import check_warmup

if TYPE_CHECKING:
    from hf_losses.script.swap import Swap

TRAINER = "transformers.trainer"
OTHER_TRAINERS = ("lightning", "pytorch_lightning")


def prepare(
    script: str, arguments: Sequence[str], *, module: bool, loss: str, **settings: Any
) -> Callable[[], int]:
    """Checks that a script can be run with a loss.

    Args:
        script: The script's file, or with `module` the name of a module.
        arguments: The script's own arguments.
        module: Whether the script is run as by `python -m`.
        loss: A registered name.
        **settings: Fields of `LossTrainingArguments` that belong to the loss; None for a default.

    Returns:
        A function that runs the script as Python would and returns 0. It raises what the script
        raises, and SystemExit if no `Trainer` was trained with the loss.

    Raises:
        ValueError: If the loss or its parameters are wrong, there is no such script, or its source
            shows that it trains without a `Trainer`.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    settings["loss_kwargs"] = parse_loss_kwargs(settings.get("loss_kwargs")) or None
    criterion = loss_of_arguments(loss, settings["loss_kwargs"])
    check_warmup(
        loss,
        settings.get("loss_warmup_ratio", 0),
        settings.get("loss_warmup_steps", 0),
        settings.get("loss_warmup_from"),
    )
    root = os.getcwd() if module else os.path.dirname(os.path.realpath(script))
    if not sys.flags.safe_path:
        sys.path[0] = root
    if not module and not os.path.isfile(script):
        raise UsageError(f"no script {script!r}; for a module write -m {script}")
    file = _module_file(script) if module else os.path.realpath(script)
    if trains_without_trainer(Path(file), Path(root)):
        raise UsageError(
            f"the loss {loss!r} cannot be used: {script} has no transformers Trainer, nor have the "
            "modules beside it, and trains in a loop of its own; use "
            f"hf_losses.get_loss({loss!r}) in that loop"
        )

    def run() -> int:
        if os.environ.get("RANK", "0") == "0":
            values = "".join(f", {name}={value:g}" for name, value in criterion.params.items())
            formula = f"{criterion.spec.full_formula}{values}"
            print(
                f"hf-losses run: {loss} ({criterion.kind}): {formula}, in {script}",
                file=sys.stderr,
                flush=True,
            )
            if function := starts_processes(Path(file)):
                print(
                    f"hf-losses run: {script} starts processes by {function}, whose Trainers have "
                    "their own loss: let it train in the process that runs it, and start several "
                    "by torchrun -m hf_losses run",
                    file=sys.stderr,
                    flush=True,
                )
            _tell_of_programs()
        return _run(script, arguments, module, _TrainerHook(loss, settings))

    return run


def _tell_of_programs() -> None:
    """Tells, before it begins, of a process in which the script may train with another loss."""
    told = set[str]()

    def say(subject: str, text: str) -> None:
        if subject not in told:
            told.add(subject)
            print(f"hf-losses run: {text}", file=sys.stderr, flush=True)

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
            if program := starts_training(arguments[1]):
                say(
                    program,
                    f"{program} is started as a process of its own: a Trainer in it has its own "
                    "loss. For this one, let hf-losses run start what trains (hf-losses run … "
                    "SCRIPT, or accelerate launch -m hf_losses run … SCRIPT)",
                )
        elif event == "import" and arguments[0] in OTHER_TRAINERS:
            name = arguments[0]
            say(name, f"{name} is imported, whose Trainer is another, with a loss of its own")

    sys.addaudithook(look)


def _module_file(module: str) -> str:
    """The file that `python -m` runs for a module."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            module = f"{module}.__main__"
            spec = importlib.util.find_spec(module)
    except ImportError as error:
        # Python imports the packages above the module: one is missing, or cannot be imported.
        if not (error.name and f"{module}.".startswith(f"{error.name}.")):
            raise UsageError(f"module {module!r} cannot be imported: {error}") from error
        spec = None
    if spec is None:
        raise UsageError(f"no module named {module!r}; for a file leave out -m")
    return str(spec.origin)


class _TrainerHook(importlib.abc.MetaPathFinder):
    """Changes Trainer as soon as the script has imported it.

    It must not import transformers earlier itself: a script may set environment variables that
    transformers reads when it is imported.
    """

    def __init__(self, loss: str, settings: dict[str, Any]) -> None:
        self.loss, self.settings = loss, settings
        self.swap: Swap | None = None
        if TRAINER in sys.modules:
            self.install(sys.modules[TRAINER])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.install(module)

        loader.exec_module = exec_module
        return spec

    def install(self, module: Any) -> None:
        stock_loss = vars(module.Trainer)["compute_loss"]

        def make(cls: type, *_: Any, **__: Any) -> Any:
            if self.swap is None:
                from hf_losses.script.swap import Swap

                self.swap = Swap(self.loss, self.settings, stock_loss)
            return object.__new__(self.swap.trainer_class(cls))

        # Python then calls __init__ of the class that __new__ chose. That class derives from the
        # one that the script called, so the script's names, imports and subclasses stay valid.
        make.__signature__ = inspect.signature(module.Trainer.__init__)  # type: ignore[attr-defined]
        module.Trainer.__new__ = staticmethod(make)

    def check(self) -> None:
        if self.swap is None or not self.swap.trained:
            raise SystemExit(
                f"hf-losses run: error: the loss {self.loss!r} was not used: the script ended "
                "without training a transformers Trainer in this process"
            )


def _run(script: str, arguments: Sequence[str], module: bool, trainer_hook: _TrainerHook) -> int:
    sys.argv[:] = [script, *arguments]
    hook = sys.excepthook

    def excepthook(kind: Any, error: BaseException, trace: TracebackType | None) -> Any:
        trace = _script_traceback(trace)
        return hook(kind, error.with_traceback(trace), trace)

    sys.excepthook = excepthook
    try:
        if module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            _run_file(os.path.abspath(script))
    except SystemExit as exit_request:
        if exit_request.code not in (None, 0):
            raise
        trainer_hook.check()
        raise
    trainer_hook.check()
    return 0


def _run_file(path: str) -> None:
    main = ModuleType("__main__")
    main.__file__, main.__loader__ = path, SourceFileLoader("__main__", path)
    main.__dict__["__builtins__"] = builtins
    # The module stays there, so that the script's exit handlers still find their globals.
    sys.modules["__main__"] = main
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def _script_traceback(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that lies in the script, without the frames that started it."""
    started = False  # Whether a frame of this file, which starts the script, has been passed.
    rest = trace
    while rest is not None:
        code = rest.tb_frame.f_code
        starts_script = code in (_run.__code__, _run_file.__code__)
        if started and not starts_script and code.co_filename != "<frozen runpy>":
            return rest
        started = started or starts_script
        rest = rest.tb_next
    return None if started else trace
