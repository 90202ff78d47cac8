"""The members of `transformers.Trainer`, and of others, that are private or could be renamed.

A test compares this list with the code and with the installed transformers.
"""

from __future__ import annotations

# Why each method is overridden or called.
METHODS = {
    "_get_dataloader": "overridden: batches keep the column loss_weight",
    "_get_grad_norm": "overridden: counts the steps whose gradient is not finite, without a sync",
    "_get_num_items_in_batch": "overridden: what an item is follows from the head, not from -100",
    "_get_train_sampler": "overridden: grouped by length, each epoch has an order of its own",
    "_hp_search_setup": "overridden: a search may give loss_kwargs as text, which is no dict",
    "hyperparameter_search": "overridden: its default objective sums the user's metrics, not ours",
    "_init_training_state": "overridden: a resumed training goes on counting",
    "_load_callback_state": "overridden: the loss in the state is no callback that is missing",
    "_load_best_model": "overridden: finds weights that transformers has renamed",
    "_load_from_checkpoint": "overridden: finds renamed weights of a checkpoint",
    "_maybe_log_save_evaluate": "overridden: the one place after every optimizer step",
    "_push_from_checkpoint": "overridden: pushes without local paths and tokens",
    "_set_signature_columns_if_needed": "overridden: a compiled model shows *args and **kwargs",
    "_finish_current_push": "called: waits for a push before the next",
    "_prepare_inputs": "overridden: DeepSpeed rounds weights and labels that are no whole numbers",
    "compute_loss_context_manager": "called: autocast for that loss",
    "get_tp_size": "called: tensor parallel processes are given the same batch",
}
# Attributes that Trainer reads from a subclass, or sets.
ATTRIBUTES = {
    "loss_is_scaled_for_ga": "read: the loss is already divided by the items of the whole step",
    "current_gradient_accumulation_steps": "set: micro-batches of the current optimizer step",
    "push_in_progress": "set and read: the uploads that are under way",
    "hub_model_id": "set and read: the repository on the Hub",
    "_eval_dataloaders": "read: evaluation loaders that are kept",
    "_train_batch_size": "read: what auto_find_batch_size has come to",
    "_signature_columns": "extended: the column loss_weight is kept though no model has it",
}
# Private attributes of other libraries, by the module that defines them.
OTHERS = {
    "_VALID_DICT_FIELDS": "transformers.training_args",
    "_metrics": "trl.trainer.sft_trainer",
    "_prepare_dataset": "trl.trainer.sft_trainer",
    "_orig_mod": "torch._dynamo.eval_frame",
    "_total_train_tokens": "trl.trainer.sft_trainer",
    "_Loss": "torch.nn.modules.loss",
    "_dataloaders": "accelerate.accelerator",
    "_iterator": "torch.utils.data.dataloader",
}
