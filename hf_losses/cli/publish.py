"""`hf-losses publish`: a finished run on the Hugging Face Hub."""

from __future__ import annotations

import argparse


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    command = commands.add_parser(
        "publish",
        help="upload a finished run to the Hugging Face Hub",
        description="Uploads model, tokenizer, results and a model card, without local paths and "
        "tokens. What is there already is not uploaded again, so that the same command resumes.",
    )
    command.add_argument("run_dir", metavar="RUN_DIR", help="output_dir of a finished run")
    command.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument("--revision", metavar="BRANCH", help="an existing branch; default: main")
    command.add_argument(
        "--overwrite", action="store_true", help="take the place of another model of that name"
    )
    command.add_argument(
        "--dry_run",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="only write what would be uploaded to FOLDER (default: RUN_DIR-publish)",
    )
    command.set_defaults(run=_publish)


def _publish(arguments: argparse.Namespace) -> None:
    from hf_losses.hub import publish

    if arguments.dry_run is not None:
        folder = publish.dry_run(arguments.run_dir, arguments.repo, arguments.dry_run or None)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            if path.name != publish.DRY_RUN:
                print(f"{path.stat().st_size:>13,} bytes  {path.relative_to(folder)}")
        print(f"wrote {folder}; nothing was uploaded")
        return
    commit = publish.publish(
        arguments.run_dir,
        arguments.repo,
        private=arguments.private or None,
        revision=arguments.revision,
        overwrite=arguments.overwrite,
    )
    print(f"published {commit.repo_url}")
