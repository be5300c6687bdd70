"""Model, optimizers and rates: against Hugging Face, formulas in float64, and two recorded runs of
MLPerf's reference.
"""

import collections
import contextlib
import copy
import functools
import itertools
import json
import math
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MLPERF, ROOT, synthetic_example
from torch._functorch.aot_autograd import aot_module_simplified
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertForPreTraining

import bert.training.model
from bert.common.files import DataError
from bert.examples.batch import INDICES
from bert.training import loop, optimization, unpadded
from bert.training.flops import peak_flops, training_flops
from bert.training.metrics import evaluate
from bert.training.model import (
    build_model,
    compile_layers,
    correct_counts,
    count_correct_or_tied,
    label_counts,
    leave_out_padding,
    load_config,
    load_model,
    load_tokenizer,
    loss_sums,
    missing_model,
    predict,
    save_model,
    with_indices,
)
from bert.training.optimization import (
    AdamWeightDecay,
    Lamb,
    LossScale,
    learning_rate,
    parameter_groups,
)
from bert.training.tensorflow_checkpoint import as_parameter, parameter_name
from bert_dali_dataloader import huggingface_batch

MASK = 103  # [MASK] of vocab.txt


@pytest.fixture
def tiny_model():
    torch.manual_seed(1)
    config = load_config(ROOT / "configs" / "bert_tiny.json")
    config.vocab_size = 1000
    return build_model(config).eval()


@pytest.fixture
def batch():
    rows = [synthetic_example(number) for number in (3, 8, 21)]
    columns = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    columns["input_mask"][1, 10:] = 0
    columns["masked_lm_weights"][2, 1:] = 0.0
    return with_indices(columns)


def test_masked_positions_get_hugging_faces_logits(tiny_model, batch):
    masked_lm_logits, next_sentence_logits = predict(tiny_model, batch)
    assert masked_lm_logits.shape == (7, 1000) and next_sentence_logits.shape == (3, 2)
    del tiny_model.forward  # back to the class's own
    full = tiny_model(
        input_ids=batch["input_ids"],
        attention_mask=batch["input_mask"],
        token_type_ids=batch["segment_ids"],
    )
    for row, count, found in zip(range(3), (3, 3, 1), masked_lm_logits.split((3, 3, 1))):
        positions = batch["masked_lm_positions"][row, :count]
        torch.testing.assert_close(found, full.prediction_logits[row, positions])
    torch.testing.assert_close(next_sentence_logits, full.seq_relationship_logits)


def test_loss_sums_and_counts(batch):
    torch.manual_seed(0)
    logits = (torch.randn(3, 3, 1000), torch.randn(3, 2))
    masked_lm = next_sentence = right = 0.0
    for row in range(3):
        for i in range(3):
            label, weight = (
                batch["masked_lm_ids"][row, i],
                batch["masked_lm_weights"][row, i].item(),
            )
            masked_lm -= weight * logits[0][row, i].log_softmax(-1)[label].item()
            right += weight * (logits[0][row, i].argmax() == label).item()
        next_sentence -= (
            logits[1][row].log_softmax(-1)[batch["next_sentence_labels"][row, 0]].item()
        )
    computed = logits[0].flatten(0, 1)[[0, 1, 2, 3, 4, 5, 6]]  # the others have weight 0
    found = loss_sums((computed, logits[1]), batch)
    assert found[0].item() == pytest.approx(masked_lm, rel=1e-5) and found[
        1
    ].item() == pytest.approx(next_sentence, rel=1e-5)
    computed[0, batch["masked_lm_ids"][0, 0]] = 99.0
    assert correct_counts((computed, logits[1]), batch, MASK)[0].item() == right + 1
    assert count_correct_or_tied(computed, batch).item() == right + 1
    assert (
        correct_counts((computed, torch.tensor([[0.0, 1], [1, 0], [1, 0]])), batch, MASK)[2].item()
        == 2
    )


def test_huggingface_batch(tiny_model, batch):
    """Unused places for predictions point at position 0 and hold token 0, as the generator writes
    them; one that is used may be at position 0 too.
    """
    batch["masked_lm_positions"][0, 0] = 0
    unused = batch["masked_lm_weights"] == 0
    batch["masked_lm_positions"][unused] = batch["masked_lm_ids"][unused] = 0
    arguments = huggingface_batch(batch)
    labels = torch.full((3, 16), -100)
    for row, count in enumerate((3, 3, 1)):
        for i in range(count):
            position = batch["masked_lm_positions"][row, i]
            labels[row, position] = batch["masked_lm_ids"][row, i]
    assert torch.equal(arguments["labels"], labels)
    assert {name: tuple(tensor.shape) for name, tensor in arguments.items()} == {
        "input_ids": (3, 16), "attention_mask": (3, 16), "token_type_ids": (3, 16),
        "labels": (3, 16), "next_sentence_label": (3,),
    }  # fmt: skip
    assert {tensor.dtype for tensor in arguments.values()} == {torch.int64}

    # The denominators of train.py: 7 predictions, 3 examples.
    masked_lm, next_sentence = loss_sums(predict(tiny_model, batch), batch)
    expected = masked_lm / (7 + 1e-5) + next_sentence / 3
    tiny_model.zero_grad()
    expected.backward()
    own = {name: weight.grad for name, weight in tiny_model.named_parameters()}
    plain = BertForPreTraining(tiny_model.config).eval()
    plain.load_state_dict(tiny_model.state_dict())
    loss = plain(**arguments).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(weight.grad, own[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "size, parameters", [("tiny", 4_433_468), ("base", 110_106_428), ("large", 336_226_108)]
)
def test_configurations(size, parameters):
    config = load_config(ROOT / "configs" / f"bert_{size}.json")
    assert (config.hidden_act, config.layer_norm_eps, config.vocab_size) == (
        "gelu_new",
        1e-12,
        30522,
    )
    with torch.device("meta"):
        assert (
            sum(parameter.numel() for parameter in build_model(config).parameters()) == parameters
        )


def test_random_weights_are_googles(tiny_model):
    """Normal, those beyond two standard deviations drawn again: TensorFlow's
    truncated_normal_initializer.
    """
    sigma, matrices = tiny_model.config.initializer_range, []
    for name, weight in tiny_model.named_parameters():
        if weight.dim() == 1:
            assert (weight == (1 if name.endswith("LayerNorm.weight") else 0)).all(), name
        else:
            assert weight.std().item() == pytest.approx(0.8796 * sigma, rel=0.15), name
            matrices.append(weight.detach().flatten() / sigma)
    values = torch.cat(matrices).double()
    assert 1.999 < values.abs().max() <= 2 + 1e-6
    normal = torch.distributions.Normal(0.0, 1.0)
    for x in (-1.5, -1.0, -0.3, 0.0, 0.5, 1.0, 1.9):
        below, all_of_it = (
            normal.cdf(torch.tensor(end)) - normal.cdf(torch.tensor(-2.0)) for end in (x, 2.0)
        )
        assert (values < x).double().mean() == pytest.approx((below / all_of_it).item(), abs=3e-3)
    assert tiny_model.bert.embeddings.word_embeddings.weight[0].abs().min() > 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_sise": 128}, "unknown keys: hidden_sise"),
        ({"hidden_size": "128"}, "hidden_size is '128', expected int"),
        ({"num_attention_heads": 3}, "not divisible by num_attention_heads 3"),
    ],
)
def test_wrong_configuration_is_refused(tmp_path, change, words):
    values = json.loads((ROOT / "configs" / "bert_tiny.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=words):
        load_config(tmp_path / "config.json")


def test_saved_model_is_hugging_faces(tiny_model, batch, tmp_path):
    for _ in range(2):  # the second replaces
        save_model(tiny_model.config, dict(tiny_model.named_parameters()), f"{tmp_path}/model")
    expected = predict(tiny_model, batch)
    assert all(
        map(
            torch.equal,
            predict(load_model(f"{tmp_path}/model", tiny_model.config).eval(), batch),
            expected,
        )
    )
    plain = BertForPreTraining.from_pretrained(tmp_path / "model").eval()
    assert plain.config.hidden_act == "gelu_new"
    assert plain.cls.predictions.decoder.weight is plain.bert.embeddings.word_embeddings.weight
    found = plain(
        input_ids=batch["input_ids"],
        attention_mask=batch["input_mask"],
        token_type_ids=batch["segment_ids"],
    )
    torch.testing.assert_close(found.seq_relationship_logits, expected[1])
    with pytest.raises(DataError, match=r"no Hugging Face folder .* did you mean .*/model\?"):
        load_model(str(tmp_path), tiny_model.config)
    other = load_config(ROOT / "configs" / "bert_tiny.json")
    with pytest.raises(DataError, match="another model: vocab_size is 1000 there and 30522"):
        load_model(f"{tmp_path}/model", other)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640)], ids=["022", "027"])
def test_files_of_a_saved_model_have_the_mode_of_the_umask(tiny_model, tmp_path, umask, mode):
    tokenizer = load_tokenizer(
        ROOT / "vocab.txt", True, load_config(ROOT / "configs" / "bert_tiny.json")
    )
    before = os.umask(umask)
    try:
        save_model(
            tiny_model.config, dict(tiny_model.named_parameters()), f"{tmp_path}/model", tokenizer
        )
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in modes and modes == dict.fromkeys(modes, mode)


@pytest.mark.parametrize("max_length", [512, 64])
def test_long_texts_are_truncated_to_what_the_model_takes(tmp_path, max_length):
    from transformers import AutoTokenizer

    config = load_config(ROOT / "configs" / "bert_tiny.json")
    config.max_position_embeddings = max_length
    load_tokenizer(ROOT / "vocab.txt", True, config).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "the " * 701
    assert (
        tokenizer.model_max_length == max_length
        and len(tokenizer(text, verbose=False)["input_ids"]) == 703
    )
    inputs = tokenizer(text, truncation=True, return_tensors="pt")
    assert build_model(config).bert(**inputs).last_hidden_state.shape == (
        1,
        max_length,
        config.hidden_size,
    )


# --------------------------------------------------------------------------------------------------
# Optimization


def reference_update(w, g, m, v, t, lr, decay, *, is_lamb, excepted):
    """One step in float64 from the formulas; returns (w, m, v)."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    m_hat, v_hat = (m / (1 - 0.9**t), v / (1 - 0.999**t)) if is_lamb else (m, v)
    u = m_hat / (np.sqrt(v_hat) + 1e-6) + (0 if excepted else decay * w)
    w_norm, u_norm = np.linalg.norm(w), np.linalg.norm(u)
    ratio = w_norm / u_norm if is_lamb and not excepted and w_norm > 0 and u_norm > 0 else 1.0
    return w - lr * ratio * u, m, v


@pytest.mark.parametrize("optimizer_class", [Lamb, AdamWeightDecay])
def test_optimizers_follow_the_formulas(optimizer_class):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "dense": torch.nn.Linear(7, 5),
            "LayerNorm": torch.nn.LayerNorm(5),
            "zero": torch.nn.Linear(3, 2),
        }
    )
    torch.nn.init.zeros_(model["zero"].weight)  # a norm of 0: ratio 1
    optimizer = optimizer_class(parameter_groups(model, 0.1))
    state = {name: (p.detach().double().numpy(), 0.0, 0.0) for name, p in model.named_parameters()}
    for t, lr in enumerate((0.0, 0.01, 0.02), start=1):  # a step with rate 0 counts
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            state[name] = reference_update(
                state[name][0], parameter.grad.double().numpy(), *state[name][1:], t, lr, 0.1,
                is_lamb=optimizer_class is Lamb, excepted="bias" in name or "LayerNorm" in name,
            )  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(
                parameter.detach().numpy(),
                state[name][0],
                rtol=1e-5,
                atol=1e-7,
                err_msg=f"{name}, step {t}",
            )


@pytest.mark.parametrize("scale", [None, 2.0**16])
def test_clipping(scale):
    """By the update of an optimizer without momentum and with a large epsilon: 1 / eps times the
    clipped gradient.
    """
    for max_norm, factor in ((1.0, 0.2), (0.0, 1.0), (50.0, 1.0)):
        parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (2, 1, 1)]
        loss_scale = LossScale("cpu") if scale else None
        optimizer = AdamWeightDecay(
            [{"params": parameters, "weight_decay": 0.0}], lr=1e6, betas=(0.0, 0.0), eps=1e6,
            max_grad_norm=max_norm, loss_scale=loss_scale,
        )  # fmt: skip
        parameters[0].grad, parameters[1].grad = (
            torch.tensor(values) * (scale or 1) for values in ([0.0, 3.0], [4.0])
        )
        optimizer.step()
        assert optimizer.gradient_norm.item() == 5.0
        assert parameters[0].tolist() == pytest.approx([0.0, -3.0 * factor], rel=1e-4)
        assert parameters[1].item() == pytest.approx(-4.0 * factor, rel=1e-4)


def test_loss_scale():
    scale = LossScale("cpu")
    scale.update(torch.tensor(False))
    scale.update(torch.tensor(False))
    assert scale.value == 2.0**14
    for _ in range(LossScale.GROWTH_INTERVAL - 1):
        scale.update(torch.tensor(True))
    other = LossScale("cpu")
    other.load_state_dict(scale.state_dict())
    for each in (scale, other):
        assert each.value == 2.0**14
        each.update(torch.tensor(True))
        assert each.value == 2.0**15
        for good in (True, False, *[True] * (LossScale.GROWTH_INTERVAL - 1)):
            each.update(torch.tensor(good))
        assert each.value == 2.0**14


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer_class", [Lamb, AdamWeightDecay])
def test_update_that_is_not_finite_is_left_out(tiny_model, optimizer_class, bad):
    """As if it had not been: the weights and the whole state, also where it would have been the
    first.
    """

    def run(values_of_first_gradient):
        model = copy.deepcopy(tiny_model)
        optimizer = optimizer_class(parameter_groups(model, 0.1), lr=0.01, max_grad_norm=1.0)
        for value in values_of_first_gradient:
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.01 * number)
            next(model.parameters()).grad.view(-1)[3] = value
            optimizer.step()
            assert optimizer.gradient_norm.isfinite() == math.isfinite(value)
        return [
            (weight, *(optimizer.state[weight][name] for name in "mvt"))
            for weight in model.parameters()
        ]

    for one, other in zip(run([bad, 1.0, bad, bad, 2.0]), run([1.0, 2.0]), strict=True):
        assert all(map(torch.equal, one, other))
        assert one[-1] == 2


@pytest.mark.parametrize(
    "given, meant",
    [
        ("ckpt/model.ckpt-10.index", "ckpt/model.ckpt-10"),
        ("ckpt/model.ckpt-10.data-00000-of-00001", "ckpt/model.ckpt-10"),
        ("ckpt", "ckpt/model.ckpt-10"),
        ("run", "run/model"),
        ("run/checkpoints", "run/checkpoints/step-00000020"),
        ("absent", None),
        ("run/model", ""),
        ("run/checkpoints/step-00000020", ""),
        ("ckpt/model.ckpt-10", ""),
    ],
)  # fmt: skip
def test_model_that_is_not_there(tmp_path, given, meant):
    for name in ("ckpt/model.ckpt-10.index", "ckpt/model.ckpt-10.data-00000-of-00001",
                 "run/model/config.json",
                 "run/checkpoints/step-00000010/manifest.json",
                 "run/checkpoints/step-00000020/manifest.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    problem = missing_model(str(tmp_path / given))
    if meant == "":
        assert problem is None
    elif meant is None:
        assert "no TensorFlow checkpoint" in problem and "did you mean" not in problem
    else:
        assert problem.startswith(f"{tmp_path}/{given}: ") and problem.endswith(
            f"; did you mean {tmp_path}/{meant}?"
        )


@pytest.mark.parametrize("optimizer_class", [AdamWeightDecay, Lamb])
@pytest.mark.parametrize("has_scale", [False, True])
def test_update_on_a_gpu_waits_for_nothing(monkeypatch, tiny_model, optimizer_class, has_scale):
    """With tensors of shapes and no contents, which know no answer to .item(). They have no
    addresses for Triton kernels either, so the same functions in torch stand for these.
    """
    monkeypatch.setattr(optimization, "_passes", lambda weights: optimization.update_cpu)
    with FakeTensorMode():
        gpu = torch.device("cuda")
        weights = {
            name: torch.nn.Parameter(torch.empty(weight.shape, device=gpu))
            for name, weight in tiny_model.named_parameters()
        }
        groups = parameter_groups(SimpleNamespace(named_parameters=weights.items), 0.01)
        optimizer = optimizer_class(
            groups, max_grad_norm=1.0, loss_scale=LossScale(gpu) if has_scale else None
        )
        for _ in range(2):
            for weight in weights.values():
                weight.grad = torch.empty_like(weight)
            optimizer.step()
        assert optimizer.gradient_norm.device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            optimizer.gradient_norm.item()


def test_utilisation_of_a_known_machine():
    """MLPerf's BERT-large on an A100: 304 sequences a second of 254 tokens on average are about 48
    % of its peak.
    """
    flops = training_flops(load_config(ROOT / "configs" / "bert_large.json"), 254, 38)
    assert 304 * flops / peak_flops("NVIDIA A100-SXM4-80GB") == pytest.approx(0.48, abs=0.01)
    assert peak_flops("NVIDIA H100 PCIe") < peak_flops("NVIDIA H100 80GB HBM3")
    assert peak_flops("NVIDIA GeForce RTX 2080") is None


def test_learning_rate():
    rates = [
        learning_rate(step, 8.0, num_warmup_steps=4, num_train_steps=16)
        for step in (0, 1, 3, 4, 12, 16, 99)
    ]
    # Decay counts from 0: 8 * (1 - 4/16) = 6 after the warm-up.
    assert rates == [0.0, 2.0, 6.0, 6.0, 2.0, 0.0, 0.0]
    assert learning_rate(0, 8.0, 4, 16, start_warmup_step=-2) == 4.0
    assert learning_rate(12, 8.0, 0, 16, poly_power=2.0) == 0.5


def test_padding_left_out_changes_nothing(tiny_model, batch):
    def run(model):
        model.zero_grad()
        sums = loss_sums(predict(model, batch), batch)
        sum(sums).backward()
        return torch.stack(sums).detach(), [
            parameter.grad.clone() for parameter in model.parameters()
        ]

    assert 0 < batch["input_mask"].sum() < batch["input_mask"].numel()
    losses, gradients = run(tiny_model)
    without = copy.deepcopy(tiny_model)
    leave_out_padding(without)
    other_losses, other_gradients = run(without)
    torch.testing.assert_close(other_losses, losses, rtol=1e-6, atol=0)
    for one, other in zip(other_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unpad", [False, True])
def test_gradient_checkpointing_keeps_less(tiny_model, batch, unpad):
    def bytes_kept():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            sum(loss_sums(predict(tiny_model, batch), batch)).backward()
        return sum(kept)

    tiny_model.train()
    if unpad:
        leave_out_padding(tiny_model)
    everything = bytes_kept()
    tiny_model.gradient_checkpointing_enable({"use_reentrant": False})
    assert bytes_kept() < 0.7 * everything


# --------------------------------------------------------------------------------------------------
# Attention on a GPU: there is none here


def attention_by_offsets(query, key, value, offsets, max_length):
    """What the kernels compute, by their documentation."""
    assert offsets.dtype == torch.int32 and offsets.diff().max() <= max_length
    assert query.shape[-1] % 8 == 0
    mixed = []
    for start, end in itertools.pairwise(offsets.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        mixed.append(((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(mixed)


def flash_on_the_cpu(q, k, v, offsets, offsets_k, longest, longest_k, dropout, is_causal, debug):
    assert offsets is offsets_k and longest == longest_k and (is_causal, debug) == (False, False)
    return attention_by_offsets(q, k, v, offsets, longest), None


def efficient_on_the_cpu(
    q, k, v, bias, offsets, offsets_k, longest, longest_k, dropout, mask_type, logsumexp
):
    assert offsets is offsets_k and longest == longest_k and (bias, mask_type) == (None, 0)
    assert logsumexp == q.requires_grad
    return attention_by_offsets(q[0], k[0], v[0], offsets, longest)[None], None


@pytest.mark.parametrize("lengths", [[5], [3, 3, 5, 3], [4, 4, 4], [7, 2, 2]])
def test_attention_on_the_cpu_stays_within_examples(lengths):
    """Neighbours of the same length are computed together: each as if it were alone."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    query, key, value = (torch.randn(sum(lengths), 2, 8) for _ in range(3))
    found = unpadded._attend_by_runs(query, key, value, offsets, 32, 0.0)
    for start, end in itertools.pairwise(offsets.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        weights = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
        torch.testing.assert_close(found[start:end], (weights @ v).transpose(0, 1))


@pytest.mark.parametrize("head_size", [16, 26])
@pytest.mark.parametrize("attend", [unpadded._flash, unpadded._memory_efficient])
def test_kernels_compute_attention(monkeypatch, attend, head_size):
    """Also with heads of a size that the kernels do not take."""
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_on_the_cpu)
    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", efficient_on_the_cpu)
    torch.manual_seed(0)
    offsets = torch.tensor([0, 3, 4, 11], dtype=torch.int32)
    for dtype in (torch.float64, torch.float32):  # flash leaves float32 to the other kernel
        tensors = torch.randn(3, 11, 2, head_size, dtype=dtype, requires_grad=True)
        expected = unpadded._attend_by_runs(*tensors, offsets, 32, 0.0)
        found = attend(*tensors, offsets, 32, 0.0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        gradients = (
            torch.autograd.grad(mixed.square().sum(), tensors)[0] for mixed in (found, expected)
        )
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "device, capability, attend",
    [
        ("cpu", None, unpadded._attend_by_runs),
        ("cuda", (9, 0), unpadded._flash),
        ("cuda", (8, 0), unpadded._flash),
        ("cuda", (7, 0), unpadded._memory_efficient),
    ],
)
def test_choice_of_attention(monkeypatch, device, capability, attend):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert unpadded.attention_on(torch.device(device)) is attend


class OperatorRecorder(TorchDispatchMode):
    """Counts attention kernels; refuses what would wait for a GPU, and nested tensors."""

    def __init__(self):
        super().__init__()
        self.kernels = collections.Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        assert "nested" not in name and name not in ("nonzero", "_local_scalar_dense")
        if "attention" in name:
            self.kernels[name] += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "attend, dtype, kernel",
    [
        (unpadded._flash, torch.bfloat16, "_flash"),
        (unpadded._flash, torch.float32, "_efficient"),
        (unpadded._memory_efficient, torch.float16, "_efficient"),
    ],
)
def test_unpadded_step_by_kernels(
    tiny_model, batch, monkeypatch, attend, dtype, kernel, checkpointing
):
    """Forward and backward over tensors of shapes and no contents: the operators exist, take these
    arguments and are differentiable; nothing waits for a GPU; a recomputation matches.
    """
    monkeypatch.setattr(unpadded, "attention_on", lambda device: attend)
    # Checkpointing looks for the random state of the device; this one has none.
    monkeypatch.setattr(torch, "meta", torch.cpu, raising=False)
    without_random_state = functools.partial(unpadded.checkpoint, preserve_rng_state=False)
    monkeypatch.setattr(unpadded, "checkpoint", without_random_state)
    config = copy.deepcopy(tiny_model.config)
    config.attention_probs_dropout_prob = config.hidden_dropout_prob = 0.1
    with torch.device("meta"):
        model = build_model(config).to(dtype)
    on_gpu = {name: column.to("meta") for name, column in batch.items()}
    leave_out_padding(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with OperatorRecorder() as recorder:
        sum(loss_sums(predict(model, on_gpu), on_gpu)).backward()
    assert all(weight.grad.dtype == dtype for weight in model.parameters())
    assert recorder.kernels == {
        f"{kernel}_attention_forward": config.num_hidden_layers * (1 + checkpointing),
        f"{kernel}_attention_backward": config.num_hidden_layers,
    }


@pytest.mark.parametrize("attend", [unpadded._flash, unpadded._memory_efficient])
def test_compiled_layer_with_kernels_is_one_graph(tiny_model, attend):
    """Whatever the number of tokens; backward too. Traced, over tensors of no contents."""
    tiny_model.to("meta", torch.bfloat16).train()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return aot_module_simplified(graph, inputs, fw_compiler=lambda graph, inputs: graph)

    run_layer = torch.compile(unpadded.run_layer, backend=count, dynamic=True, fullgraph=True)
    for num_tokens in (11, 29):
        for layer in tiny_model.bert.encoder.layer:
            hidden = torch.empty(num_tokens, 128, device="meta", dtype=torch.bfloat16)
            offsets = torch.empty(4, device="meta", dtype=torch.int32)
            run_layer(layer, hidden.requires_grad_(), offsets, 16, attend).sum().backward()
            assert hidden.grad.shape == hidden.shape
    assert len(graphs) == 1


# --------------------------------------------------------------------------------------------------
# Weights from TensorFlow


def tensorflow_variables(model):
    """{TensorFlow's name: array} of a model, written down by hand for two layers."""
    parameters = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    dense = {"/kernel": ".weight", "/bias": ".bias"}
    layer_norm = {"/gamma": ".weight", "/beta": ".bias"}
    names = {
        f"bert/embeddings/{kind}_embeddings": f"bert.embeddings.{kind}_embeddings.weight"
        for kind in ("word", "position", "token_type")
    }
    modules = {"bert/embeddings/LayerNorm": layer_norm, "bert/pooler/dense": dense}
    for layer in range(2):
        for part in (
            "attention/self/query",
            "attention/self/key",
            "attention/self/value",
            "attention/output/dense",
            "intermediate/dense",
            "output/dense",
        ):
            modules[f"bert/encoder/layer_{layer}/{part}"] = dense
        for part in ("attention/output/LayerNorm", "output/LayerNorm"):
            modules[f"bert/encoder/layer_{layer}/{part}"] = layer_norm
    modules |= {
        "cls/predictions/transform/dense": dense,
        "cls/predictions/transform/LayerNorm": layer_norm,
    }
    for module, endings in modules.items():
        for ending, own in endings.items():
            names[module + ending] = module.replace("layer_", "layer.").replace("/", ".") + own
    names |= {
        "cls/predictions/output_bias": "cls.predictions.bias",
        "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
        "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    }
    assert set(names.values()) == parameters.keys()
    return {
        name: parameters[own].T if name.endswith("kernel") else parameters[own]
        for name, own in names.items()
    }


def write_tensorflow_checkpoint(prefix, arrays):
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            name: tf.compat.v1.get_variable(name, initializer=array)
            for name, array in arrays.items()
        }
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(session, str(prefix), write_meta_graph=False)


@pytest.mark.parametrize("has_slots", [False, True])
def test_tensorflow_checkpoint(tiny_model, tmp_path, has_slots):
    arrays = tensorflow_variables(tiny_model)
    if has_slots:
        slots = {
            f"{name}/{slot}": np.ones_like(array)
            for name, array in arrays.items()
            for slot in ("LAMB", "LAMB_1")
        }
        arrays |= slots | {
            "global_step": np.int64(28252),
            "beta1_power": np.float32(0.5),
            "beta2_power": np.float32(0.5),
        }
    write_tensorflow_checkpoint(tmp_path / "model.ckpt-28252", arrays)
    loaded = load_model(str(tmp_path / "model.ckpt-28252"), tiny_model.config)
    for (name, parameter), expected in zip(
        loaded.named_parameters(), tiny_model.parameters(), strict=True
    ):
        assert torch.equal(parameter, expected) and parameter.is_contiguous(), name
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight


def test_tensorflow_checkpoint_of_another_model(tiny_model, tmp_path):
    arrays = tensorflow_variables(tiny_model)
    arrays["bert/pooler/dense/bias"] = np.zeros(7, np.float32)
    del arrays["cls/predictions/output_bias"]
    arrays["cls/predictions/extra"] = np.zeros(3, np.float32)
    write_tensorflow_checkpoint(tmp_path / "model.ckpt", arrays)
    with pytest.raises(DataError) as error:
        load_model(str(tmp_path / "model.ckpt"), tiny_model.config)
    assert str(error.value) == (
        f"{tmp_path}/model.ckpt: another model: "
        f"bert.pooler.dense.bias is [7] there and [{tiny_model.config.hidden_size}] in the "
        "configuration; "
        f"cls.predictions.bias is missing there and [{tiny_model.config.vocab_size}] in the "
        "configuration; "
        "cls.predictions.extra is [3] there and missing in the configuration"
    )


def test_recorded_tensorflow_checkpoint():
    import tensorflow as tf

    folder = MLPERF / "training"
    model = load_model(str(folder / "model.ckpt-10"), load_config(folder / "bert_config.json"))
    parameters = dict(model.named_parameters())
    recorded = tf.train.load_checkpoint(str(folder / "model.ckpt-10"))
    names = [
        name
        for name in recorded.get_variable_to_shape_map()
        if not re.search("LAMB|Adam|global_step|power", name)
    ]
    assert len(names) == len(parameters)
    for name in names:
        array = recorded.get_tensor(name)
        assert torch.equal(parameters[parameter_name(name)], as_parameter(name, array)), name


# --------------------------------------------------------------------------------------------------
# MLPerf's reference, recorded: ten LAMB steps of a tiny BERT


class NoParallelism:
    """What loop.accumulate_gradients needs of bert/training/plugins.py, in one process."""

    data_group = None
    autocast = no_sync = staticmethod(contextlib.nullcontext)

    def __init__(self, model):
        self.model = model

    def backward(self, loss):
        loss.backward()


@pytest.mark.parametrize("unpad", [False, True])
def test_evaluation_pools_over_batches(process_group, tiny_model, batch, unpad):
    if unpad:
        leave_out_padding(tiny_model)
    batch["masked_lm_ids"][:, :2] = torch.tensor([[5, 5], [6, 7], [8, 9]])
    batch["input_ids"][:, 1:3] = MASK
    # A rank's last, where no example is left for it.
    *rows, empty = (
        with_indices({name: batch[name][i : i + 1] for name in batch if name not in INDICES})
        for i in range(4)
    )
    together, apart = (
        evaluate(tiny_model, [batch], torch.device("cpu"), MASK),
        evaluate(tiny_model, [*rows, empty], torch.device("cpu"), MASK),
    )
    assert apart == pytest.approx(together, rel=1e-6)
    logits = predict(tiny_model.eval(), batch)
    right, at_mask, next_right = (n.item() for n in correct_counts(logits, batch, MASK))
    masked_lm_loss, next_sentence_loss = (loss.item() for loss in loss_sums(logits, batch))
    expected = {
        "masked_lm_accuracy": right / 7, "masked_lm_loss": masked_lm_loss / 7,
        "mask_accuracy": at_mask / 5, "mask_baseline": 2 / 5,
        "next_sentence_accuracy": next_right / 3, "next_sentence_baseline": 2 / 3,
        "next_sentence_loss": next_sentence_loss / 3, "examples": 3,
    }  # fmt: skip
    assert together == pytest.approx(expected)


def test_positions_that_show_mask(tiny_model, batch):
    """Two of three predictions count in the first example, with the labels 5, 5; in the second one
    of 5 and one of 6 do; the third has one prediction, which was left unchanged.
    """
    batch["masked_lm_ids"][:2] = torch.tensor([[5, 5, 7], [5, 6, 8]])
    batch["input_ids"][:2, 1:3] = MASK  # of positions 1, 2 and 3
    logits = torch.zeros(7, 1000)
    logits[:, 5] = 1.0
    assert label_counts(batch, MASK, 1000).nonzero().flatten().tolist() == [5, 6]
    assert label_counts(batch, MASK, 1000)[5] == 3
    found = correct_counts((logits, torch.zeros(3, 2)), batch, MASK)
    assert [count.item() for count in found] == [3, 3, 1]
    batch["input_ids"][0, 1] = 5  # shown unchanged: right, but not counted at [MASK]
    found = correct_counts((logits, torch.zeros(3, 2)), batch, MASK)
    assert [count.item() for count in found][:2] == [3, 2]


def test_examples_without_a_mask(process_group, tiny_model, batch):
    found = evaluate(tiny_model, [batch], torch.device("cpu"), MASK)
    assert math.isnan(found["mask_accuracy"]) and math.isnan(found["mask_baseline"])


@pytest.mark.parametrize("num_rows", [4, 64])
def test_padded_evaluation_is_the_same(process_group, tiny_model, batch, num_rows):
    """Batches of one shape, for compiled layers; made of a batch with fewer examples."""
    seen, forward = [], tiny_model.forward
    tiny_model.forward = lambda **inputs: (
        seen.append(inputs["input_ids"].shape) or forward(**inputs)
    )
    plain = evaluate(tiny_model, [batch], torch.device("cpu"), MASK)
    padded = evaluate(tiny_model, [batch], torch.device("cpu"), MASK, num_rows=num_rows)
    assert padded == pytest.approx(plain, rel=1e-6, nan_ok=True) and padded["examples"] == 3
    assert seen == [(3, 16), (num_rows, 16)]


@pytest.mark.parametrize("unpad", [False, True])
def test_rows_added_to_the_decoder_change_nothing(tiny_model, batch, monkeypatch, unpad):
    """The vocabulary of a multiple of 64, which a GPU gets; 1,000 is none."""
    if unpad:
        leave_out_padding(tiny_model)

    def run():
        tiny_model.zero_grad()
        logits = predict(tiny_model, batch)
        sum(loss_sums(logits, batch)).backward()
        return logits[0], [weight.grad.clone() for weight in tiny_model.parameters()]

    expected, gradients = run()
    multiples = {"cuda": bert.training.model._row_multiple(torch.device("cuda"))}
    monkeypatch.setattr(bert.training.model, "_row_multiple", lambda device: multiples["cuda"])
    sizes, linear = set(), torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda hidden, weight, bias: sizes.add(len(weight)) or linear(hidden, weight, bias),
    )
    for is_training in (False, True):
        found, other_gradients = tiny_model.train(is_training) and run()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        for one, other in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert 1024 in sizes and 1000 not in sizes
    assert {len(weight) for weight in tiny_model.state_dict().values()}.isdisjoint({1024})


@pytest.mark.parametrize("autocast", [True, False], ids=["ddp", "zero1"])
@pytest.mark.parametrize("unpad", [False, True])
def test_evaluation_has_logits_in_float32(tiny_model, batch, unpad, autocast):
    """Rounded to bf16, the largest logit is often one of several. Training has them in bf16."""
    if unpad:
        leave_out_padding(tiny_model)
    if not autocast:
        tiny_model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        found = predict(tiny_model, batch)
        expected = predict(tiny_model.train(), batch)
    for one, other in zip(found, expected):
        assert (one.dtype, other.dtype) == (torch.float32, torch.bfloat16)
        assert (one.bfloat16() != one).float().mean() > 0.9
        torch.testing.assert_close(one, other.float(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("micro_batches", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", ["startwarm-2", "x8_lr2e-2"])
@pytest.mark.parametrize("unpad", [False, True])
def test_recorded_run(process_group, run, micro_batches, unpad):
    compare_with_recording(run, micro_batches, prepare=leave_out_padding if unpad else None)


@pytest.mark.slow
@pytest.mark.parametrize("unpad", [True, False])
def test_recorded_run_as_on_a_gpu(process_group, monkeypatch, unpad):
    """Compiled, with rows added to the decoder; padding left out as by default, and computed."""
    monkeypatch.setattr(bert.training.model, "_row_multiple", lambda device: 64)

    def prepare(model):
        if unpad:
            leave_out_padding(model)
        compile_layers(model)

    # No vector instructions: their headers take most of the C++ compiler's time.
    scalar = torch._inductor.config.patch({"cpp.simdlen": 1})
    try:
        with scalar:
            compare_with_recording("startwarm-2", 4, prepare=prepare)
    finally:
        # What inductor compiles is linked so that loading it rounds tiny numbers to 0 ever after.
        torch.set_flush_denormal(False)


def erf_gelu(monkeypatch):
    monkeypatch.setitem(bert.training.model._HIDDEN_ACTIVATIONS, "gelu", "gelu")


def layer_norm_1e_5(monkeypatch):
    BertConfig = bert.training.model.BertConfig
    monkeypatch.setattr(
        bert.training.model,
        "BertConfig",
        lambda **values: BertConfig(**values | {"layer_norm_eps": 1e-5}),
    )


def no_clipping(monkeypatch):
    return {"max_grad_norm": 0.0}


def change_excepted(monkeypatch, name):
    def groups(model, weight_decay):
        regular, excepted = optimization.parameter_groups(model, weight_decay)
        return [regular, excepted | {name: regular[name]}]

    monkeypatch.setattr(sys.modules[__name__], "parameter_groups", groups)


def decay_of_biases(monkeypatch):
    change_excepted(monkeypatch, "weight_decay")


def trust_ratio_of_biases(monkeypatch):
    change_excepted(monkeypatch, "layer_adaptation")


def no_bias_correction(monkeypatch):
    real = AdamWeightDecay.__init__
    monkeypatch.setattr(
        AdamWeightDecay,
        "__init__",
        lambda self, *args, **options: real(self, *args, **options | {"bias_correction": False}),
    )


def mean_of_means(monkeypatch):
    """Each sequence's masked LM loss is averaged by itself first."""

    def loss_sums_by_sequence(logits, batch):
        _, next_sentence = loss_sums(logits, batch)
        labels = batch["masked_lm_ids"].flatten()[batch["prediction_indices"]]
        cross_entropy = torch.nn.functional.cross_entropy(logits[0], labels, reduction="none")
        weights = batch["masked_lm_weights"]
        sequences = batch["prediction_indices"] // weights.shape[1]
        sums = torch.zeros(len(weights)).index_add(0, sequences, cross_entropy)
        return (sums / weights.sum(1)).mean() * weights.sum(), next_sentence

    monkeypatch.setattr(loop, "loss_sums", loss_sums_by_sequence)


def late_rate(monkeypatch):
    return {"rate_offset": 1}


@pytest.mark.parametrize(
    "mutate",
    [
        erf_gelu,
        layer_norm_1e_5,
        no_clipping,
        decay_of_biases,
        trust_ratio_of_biases,
        no_bias_correction,
        mean_of_means,
        late_rate,
    ],
)
def test_recording_notices(process_group, monkeypatch, mutate):
    """What a port gets wrong easily must fail the comparison, in one of the two recordings at
    least.
    """
    options = mutate(monkeypatch) or {}
    assert any(differs(run, options) for run in ("startwarm-2", "x8_lr2e-2"))


def differs(run, options):
    try:
        compare_with_recording(run, 1, **options)
    except AssertionError:
        return True
    return False


def compare_with_recording(run, micro_batches, max_grad_norm=1.0, rate_offset=0, prepare=None):
    folder = MLPERF / "training"
    golden = json.loads((folder / f"golden_{run}.json").read_text())
    hyper = golden["hparams"]
    arrays = np.load(folder / "batches.npz")
    batches = [
        {
            name: torch.tensor(arrays[name][i]).to(
                torch.float32 if name == "masked_lm_weights" else torch.int64
            )
            for name in arrays
        }
        for i in range(10)
    ]
    model = build_model(load_config(folder / "bert_config.json"))
    parameters, start = dict(model.named_parameters()), {}
    for name, array in np.load(folder / "init_weights.npz").items():
        is_scaled = run.startswith("x8") and golden["rules"][name]["weight_decay"]
        start[name] = as_parameter(name, array) * (8 if is_scaled else 1)
        parameters[parameter_name(name)].data.copy_(start[name])
    assert len(start) == len(parameters)
    if prepare:
        prepare(model)

    optimizer = Lamb(
        parameter_groups(model, hyper["lamb_weight_decay_rate"]),
        betas=(hyper["lamb_beta_1"], hyper["lamb_beta_2"]),
        eps=hyper["epsilon"],
        max_grad_norm=max_grad_norm,
    )
    for step, (batch, expected) in enumerate(zip(batches, golden["steps"], strict=True)):
        rate = learning_rate(
            step + rate_offset,
            hyper["learning_rate"],
            hyper["num_warmup_steps"],
            hyper["num_train_steps"],
            hyper["poly_power"],
            hyper["start_warmup_step"],
        )
        optimizer.zero_grad()
        parts = [
            with_indices(dict(zip(batch, columns)))
            for columns in zip(*(column.chunk(micro_batches) for column in batch.values()))
        ]
        masked_lm, next_sentence, _ = loop.accumulate_gradients(NoParallelism(model), parts)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        # Tolerances: what a faithful port reaches, as stated with the recording.
        assert math.isclose(rate, expected["lr"], rel_tol=1e-6)
        assert math.isclose(
            (masked_lm + next_sentence).item(), expected["total_loss"], rel_tol=1e-6
        )
        assert math.isclose(next_sentence.item(), expected["nsp_loss"], rel_tol=1e-5)
        assert math.isclose(
            optimizer.gradient_norm.item(), expected["global_grad_norm"], rel_tol=3e-5
        )
    after = evaluate(model, map(with_indices, batches), torch.device("cpu"), MASK)
    for name in ("masked_lm_loss", "next_sentence_loss"):
        assert math.isclose(after[name], golden["eval_after"][name], rel_tol=1e-5)
    assert math.isclose(
        after["masked_lm_accuracy"], golden["eval_after"]["masked_lm_accuracy"], rel_tol=1e-6
    )
    for name, array in np.load(folder / f"final_weights_{run}.npz").items():
        if "key/bias" not in name:  # its true gradient is 0; what is recorded is round-off
            final = as_parameter(name, array)
            distance = (parameters[parameter_name(name)].detach() - final).norm()
            assert distance <= 1e-4 * (final - start[name]).norm(), name
