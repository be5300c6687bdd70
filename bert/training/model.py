"""BERT with both pretraining heads: Hugging Face's `BertForPreTraining`, at masked positions only.

Shapes: B examples, S positions, P predictions per example, M predictions whose weight is not 0, H
hidden size, V vocabulary.
"""

import contextlib
import glob
import json
import os
import re
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

from bert.common.files import DataError
from bert.examples.batch import INDICES, indices_of
from bert.training import checkpoint, unpadded
from bert.training.tensorflow_checkpoint import is_tensorflow_checkpoint, read_tensorflow_checkpoint

Batch = dict[str, torch.Tensor]  # of bert_dali_dataloader.DaliDataloader, with indices=True
Logits = tuple[torch.Tensor, torch.Tensor]  # masked LM [M, V], next sentence [B, 2]

# In Google's and MLPerf's configuration files "gelu" means the tanh approximation, which Hugging
# Face calls "gelu_new".
_HIDDEN_ACTIVATIONS = {"gelu": "gelu_new", "gelu_new": "gelu_new"}

_CONFIG_TYPES = {
    "vocab_size": int, "hidden_size": int, "num_hidden_layers": int, "num_attention_heads": int,
    "intermediate_size": int, "max_position_embeddings": int, "type_vocab_size": int,
    "hidden_act": str, "hidden_dropout_prob": float, "attention_probs_dropout_prob": float,
    "initializer_range": float,
}  # fmt: skip
_SHAPE_KEYS = [key for key, kind in _CONFIG_TYPES.items() if kind is int] + ["hidden_act"]


def load_config(path: str) -> BertConfig:
    """Reads a `bert_config.json` in the format of Google and MLPerf.

    Raises DataError for a missing or unknown key, a value of the wrong type, and an activation
    other than GELU.
    """
    try:
        with open(path) as file:
            values = json.load(file)
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict) or values.keys() != _CONFIG_TYPES.keys():
        found = values.keys() if isinstance(values, dict) else set()
        missing, unknown = _CONFIG_TYPES.keys() - found, found - _CONFIG_TYPES.keys()
        raise DataError(
            f"{path}: missing keys: {', '.join(sorted(missing)) or 'none'}, unknown keys: "
            f"{', '.join(sorted(unknown)) or 'none'}"
        )
    for key, kind in _CONFIG_TYPES.items():
        if not isinstance(values[key], (int, float) if kind is float else kind):
            raise DataError(f"{path}: {key} is {values[key]!r}, expected {kind.__name__}")
    if values["hidden_act"] not in _HIDDEN_ACTIVATIONS:
        raise DataError(f"{path}: hidden_act is {values['hidden_act']!r}, expected 'gelu'")
    values["hidden_act"] = _HIDDEN_ACTIVATIONS[values["hidden_act"]]
    if values["hidden_size"] % values["num_attention_heads"]:
        raise DataError(
            f"{path}: hidden_size {values['hidden_size']} is not divisible by num_attention_heads "
            f"{values['num_attention_heads']}"
        )
    return BertConfig(**values, layer_norm_eps=1e-12)


def config_values(config: BertConfig) -> dict[str, Any]:
    """Returns the values of a configuration file by its keys."""
    return {key: getattr(config, key) for key in _CONFIG_TYPES}


def build_model(config: BertConfig) -> BertForPreTraining:
    """Returns a model with random weights; its `forward` is `_forward` below.

    As in Google's and MLPerf's modeling.py, matrices are from a normal distribution that is
    truncated at two of its standard deviations, biases are 0, and layer norms do nothing. (Hugging
    Face does not truncate, and [PAD]'s row is 0.)
    """
    model = BertForPreTraining(config)
    sigma = config.initializer_range
    for weight in model.parameters():
        if weight.dim() > 1:  # Hugging Face has set the others
            torch.nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma)
    return _bind_forward(model)


def load_model(where: str, config: BertConfig) -> BertForPreTraining:
    """Returns a model with the weights of a TensorFlow prefix, Hugging Face folder or checkpoint.

    Dropout is that of `config`. DataError if there is no model, or if its shape or activation is
    not that of `config`.
    """
    if problem := missing_model(where):
        raise DataError(problem)
    if is_tensorflow_checkpoint(where):
        return _model_with(read_tensorflow_checkpoint(where), where, config)
    if checkpoint.is_checkpoint(where):
        return _model_with(checkpoint.load_weights(where), where, config)
    return _load_folder(where, config)


def _model_with(weights, where, config):
    """Returns a model with these weights, {parameter's name: float32 tensor}."""
    model = _bind_forward(BertForPreTraining(config))
    shapes, expected = (
        {name: list(tensor.shape) for name, tensor in tensors}
        for tensors in (weights.items(), model.named_parameters())
    )
    differences = [
        f"{name} is {shapes.get(name, 'missing')} there and "
        f"{expected.get(name, 'missing')} in the configuration"
        for name in sorted(expected.keys() | shapes.keys())
        if shapes.get(name) != expected.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise DataError(f"{where}: another model: {'; '.join(differences[:5])}{more}")
    # The tied output weights have no name of their own.
    model.load_state_dict(weights, strict=False)
    return model


def _load_folder(folder, config):
    try:
        saved = BertConfig.from_pretrained(folder, local_files_only=True)
        differences = [
            f"{key} is {getattr(saved, key)!r} there and {getattr(config, key)!r} in the "
            "configuration"
            for key in _SHAPE_KEYS
            if getattr(saved, key) != getattr(config, key)
        ]
        if differences:
            raise DataError(
                f"{folder}: another model: {'; '.join(differences)} ('gelu_new' is GELU's tanh "
                "form, 'gelu' its erf form)"
            )
        return _bind_forward(
            BertForPreTraining.from_pretrained(folder, config=config, local_files_only=True)
        )
    except OSError as error:
        raise DataError(f"{folder}: no Hugging Face model: {error}") from None
    except SafetensorError as error:
        raise DataError(corrupt_weights(folder) or f"{folder}: {error}") from None
    except TypeError as error:
        raise DataError(f"{folder}/config.json: not a model's: {error}") from None


def corrupt_weights(folder: str) -> str | None:
    """Returns what is wrong with a Hugging Face folder's safetensors; None if all can be opened."""
    for path in sorted(glob.glob(f"{glob.escape(folder)}/*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            return f"{path}: corrupt or truncated: {error}; copy it again"
    return None


def missing_model(where: str) -> str | None:
    """Returns None if `load_model` finds a model there, else a message with a likely path."""

    def is_model(path):
        return (
            is_tensorflow_checkpoint(path)
            or checkpoint.is_checkpoint(path)
            # Without it Hugging Face assumes BERT-base.
            or os.path.isfile(os.path.join(path, "config.json"))
        )

    if is_model(where):
        return None
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", where)
    inside = (
        path.removesuffix(".index")
        for name in ("*.index", "model", "step-*")
        for path in glob.glob(f"{glob.escape(where)}/{name}")
    )
    found = sorted(filter(is_model, (prefix, *inside)))
    return (
        f"{where}: no TensorFlow checkpoint (no {where}.index), no Hugging Face folder (no "
        "config.json in it) and no checkpoint of train.py (no manifest.json)"
        f"{f'; did you mean {found[-1]}?' if found else ''}"
    )


def _bind_forward(model):
    # On the instance, not in a subclass: ColossalAI's policies need the exact class.
    model.forward = types.MethodType(_forward, model)
    # --plugin=hybrid replaces this layer by one of its own, which does the same.
    model.cls.predictions.decoder.forward = types.MethodType(
        _aligned_linear, model.cls.predictions.decoder
    )
    if model.config.hidden_act == "gelu_new":
        # The same function, but Hugging Face's keeps four times as much for the backward pass.
        for layer in model.bert.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.GELU("tanh")
        model.cls.predictions.transform.transform_act_fn = torch.nn.GELU("tanh")
    return model


def leave_out_padding(model: BertForPreTraining) -> None:
    """Makes the model skip positions of padding; results are the same except for rounding."""
    model.forward = types.MethodType(_unpadded_forward, model)
    model.run_layer = unpadded.run_layer


def _aligned_linear(self, hidden):
    """As torch.nn.Linear.forward, but where it is faster with rows of zeros added to the weights.

    They are in no parameter, so they are never saved; and no logits of theirs are returned.
    """
    rows = self.out_features
    padding = -rows % _row_multiple(hidden.device)
    if not padding:
        return F.linear(hidden, self.weight, self.bias)
    weight, bias = F.pad(self.weight, (0, 0, 0, padding)), F.pad(self.bias, (0, padding))
    return F.linear(hidden, weight, bias)[..., :rows]


def _row_multiple(device):
    # BERT's vocabulary, 30,522, is no multiple of 8, and tensor cores would stand idle.
    return 64 if device.type == "cuda" else 1


def compile_layers(model: BertForPreTraining) -> None:
    """Applies torch.compile to the masked LM head and the layers, of which all are alike.

    After `leave_out_padding`, if that is wanted. The numbers of tokens and of predictions, which
    differ from batch to batch, are variables of the compiled code.
    """
    # bert/common/quiet_imports.py set it to 1.
    torch._inductor.config.compile_threads = min(32, len(os.sched_getaffinity(0)))
    if hasattr(model, "run_layer"):
        model.run_layer = torch.compile(model.run_layer, dynamic=True)
    else:
        for layer in model.bert.encoder.layer:
            layer.compile()
    model.cls.predictions.compile(dynamic=True)


def _unpadded_forward(
    self, input_ids, input_mask, segment_ids, masked_lm_positions, token_indices, token_offsets,
    prediction_indices,
):  # fmt: skip
    """As `_forward`, without computing padding."""
    hidden = unpadded.encode(
        self.bert, input_ids, segment_ids, token_indices, token_offsets, self.run_layer
    )
    places = input_mask.flatten().cumsum(0) - 1  # of each position, in `hidden`; not of padding
    positions = _positions(masked_lm_positions, prediction_indices, input_ids.shape[1])
    masked = hidden.index_select(0, places[positions])  # [M, H]
    first = hidden.index_select(0, token_offsets[:-1])  # [B, H]
    return _logits(self, masked, self.bert.pooler(first[:, None]))


def _forward(
    self, input_ids, input_mask, segment_ids, masked_lm_positions, token_indices, token_offsets,
    prediction_indices,
):  # fmt: skip
    """int64 [B, S] three times, int64 [B, P] and indices -> logits [M, V], [B, 2]."""
    # [B, 1, S]: with a mask [B, S] Hugging Face checks whether it is all ones, and waits for the
    # GPU.
    encoded = self.bert(input_ids, attention_mask=input_mask[:, None], token_type_ids=segment_ids)
    hidden = encoded.last_hidden_state.flatten(0, 1)
    positions = _positions(masked_lm_positions, prediction_indices, input_ids.shape[1])
    masked = hidden.index_select(0, positions)  # [M, H]
    return _logits(self, masked, encoded.pooler_output)


def _logits(model, masked, pooled):
    """[M, H], [B, H] -> [M, V], [B, 2]: in evaluation float32, whatever the model computes in.

    In bf16 the largest logit is often one of several: 2.7 % of a small model's predictions.
    """
    heads = model.cls
    if model.training:
        return heads.predictions(masked), heads.seq_relationship(pooled)
    masked = heads.predictions.transform(masked)
    return _in_float32(heads.predictions.decoder, masked), _in_float32(
        heads.seq_relationship, pooled
    )


def _in_float32(layer, hidden):
    weights = {name: weight.float() for name, weight in layer.named_parameters()}
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.func.functional_call(layer, weights, hidden.float())


def _positions(masked_lm_positions, prediction_indices, seq_length):
    """Returns the positions of M predictions among all B * S, int64 [M]."""
    examples = prediction_indices // masked_lm_positions.shape[1]
    return examples * seq_length + masked_lm_positions.flatten()[prediction_indices]


def with_indices(batch: Batch) -> Batch:
    """Returns the batch with the indices that the loader adds for train.py; waits for the GPU."""
    mask, weights = (batch[name].cpu().numpy() for name in ("input_mask", "masked_lm_weights"))
    device = batch["input_ids"].device
    found = indices_of(mask, weights)
    return batch | {name: torch.from_numpy(array).to(device) for name, array in found.items()}


def predict(model: torch.nn.Module, batch: Batch) -> Logits:
    """Runs the model on a batch."""
    names = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", *INDICES)
    return model(**{name: batch[name] for name in names})


def _labels_and_weights(batch):
    """Returns the token ids int64 [M] and the weights float32 [M] of the masked LM logits."""
    names = ("masked_lm_ids", "masked_lm_weights")
    return (batch[name].flatten()[batch["prediction_indices"]] for name in names)


def loss_sums(logits: Logits, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sums of weighted masked LM and of next-sentence cross entropies, float32 []."""
    masked_lm_logits, next_sentence_logits = logits
    labels, weights = _labels_and_weights(batch)
    cross_entropy = F.cross_entropy(masked_lm_logits.float(), labels, reduction="none")
    masked_lm = (cross_entropy * weights).sum()
    next_sentence = F.cross_entropy(
        next_sentence_logits.float(), batch["next_sentence_labels"].flatten(), reduction="sum"
    )
    return masked_lm, next_sentence


def correct_counts(
    logits: Logits, batch: Batch, mask_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the correct predictions, [] each: masked LM (weighted), those of them whose position
    shows [MASK], and next-sentence.
    """
    masked_lm_logits, next_sentence_logits = logits
    labels, weights = _labels_and_weights(batch)
    right = (masked_lm_logits.argmax(-1) == labels) * weights
    return (
        right.sum(),
        (right * _shows_mask(batch, mask_id)).sum(),
        (next_sentence_logits.argmax(-1) == batch["next_sentence_labels"].flatten()).sum(),
    )


def label_counts(batch: Batch, mask_id: int, vocab_size: int) -> torch.Tensor:
    """Returns how often each token is to be predicted at a position that shows [MASK], [V]."""
    labels, weights = _labels_and_weights(batch)
    counts = torch.zeros(vocab_size, device=weights.device)
    return counts.scatter_add_(0, labels, weights * _shows_mask(batch, mask_id))


def _shows_mask(batch, mask_id):
    """Returns bool [M]: 80 % of the predictions; the other tokens were kept or replaced."""
    positions = _positions(
        batch["masked_lm_positions"], batch["prediction_indices"], batch["input_ids"].shape[1]
    )
    return batch["input_ids"].flatten()[positions] == mask_id


def count_correct_or_tied(masked_lm_logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Returns the weighted number of correct or tied masked LM predictions, float32 [].

    For the progress line. On the CPU 3 ms at 32 x 20 predictions; the argmax of `correct_counts`
    takes 25 ms.
    """
    labels, weights = _labels_and_weights(batch)
    logit_of_label = masked_lm_logits.gather(-1, labels.unsqueeze(-1))
    is_correct = (logit_of_label >= masked_lm_logits.amax(-1, keepdim=True)).squeeze(-1)
    return (is_correct * weights).sum()


def load_tokenizer(vocab_file: str, do_lower_case: bool, config: BertConfig) -> BertTokenizerFast:
    """Returns Hugging Face's tokenizer, which truncates to the model's maximum length.

    DataError unless the vocabulary has as many tokens as the model.
    """
    try:
        with open(vocab_file, encoding="utf-8") as file:
            num_tokens = sum(1 for _ in file)
        tokenizer = BertTokenizerFast(
            vocab_file=vocab_file,
            do_lower_case=do_lower_case,
            model_max_length=config.max_position_embeddings,
        )
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{vocab_file}: not a vocabulary, one token a line: {error}") from None
    if num_tokens != config.vocab_size:
        raise DataError(
            f"{vocab_file} has {num_tokens} tokens, the configuration has vocab_size "
            f"{config.vocab_size}; use the vocabulary that made the examples, and its configuration"
        )
    return tokenizer


def save_model(
    config: BertConfig,
    weights: dict[str, torch.Tensor],
    folder: str,
    tokenizer: BertTokenizerFast | None = None,
    write_card: Callable[[str], None] | None = None,
) -> None:
    """Writes or replaces a Hugging Face folder (config, weights, tokenizer), whole or not at all.

    weights: {parameter's name: float32 tensor}. write_card: writes the model card into a folder.
    DataError if it cannot be written.
    """
    with torch.device("meta"):
        model = BertForPreTraining(config)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    temporary = _unfinished(folder)
    remove_unfinished(folder)
    try:
        model.save_pretrained(temporary, safe_serialization=True)
        _open_weights_to_readers(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if write_card is not None:
            write_card(temporary)
        replaced = f"{folder}.old"
        shutil.rmtree(replaced, ignore_errors=True)
        if os.path.isdir(folder):
            os.rename(folder, replaced)
        os.rename(temporary, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"{folder}: the model could not be written: {error}") from None


def remove_unfinished(folder: str) -> None:
    """Removes what `save_model` was writing into a folder when it was killed."""
    shutil.rmtree(_unfinished(folder), ignore_errors=True)


def _unfinished(folder):
    return f"{folder}.tmp"


def _open_weights_to_readers(folder):
    """Gives weights the mode of config.json: safetensors leaves them at 600."""
    for path in glob.glob(f"{glob.escape(folder)}/*.safetensors"):
        with contextlib.suppress(OSError):  # a file system may have no modes
            shutil.copymode(f"{folder}/config.json", path)
