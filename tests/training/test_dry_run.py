"""train.py --dry_run: its arithmetic by hand and against real models; every recipe, with one file
of examples and nothing else.
"""

import os
import re

import pytest
from conftest import ROOT, UNICODE_TEXT, assert_refused, create
from training_runs import flags, train_here

import bert.common.quiet_imports  # noqa: F401  before the frameworks

# isort: split
import torch
import torch.distributed as dist
from transformers import BertConfig, BertForPreTraining

from bert.common.files import FlagError
from bert.training import cost, dry_run
from bert.training.cost import Layout
from bert.training.flops import peak_flops, training_flops
from bert.training.model import (
    build_model,
    leave_out_padding,
    load_config,
    loss_sums,
    predict,
    with_indices,
)
from bert.training.optimization import Lamb, parameter_groups
from train import main

pytestmark = pytest.mark.slow

RECIPES = sorted((ROOT / "configs/recipes").glob("*.args"))
LARGE = load_config(ROOT / "configs/bert_large.json")
BERT_LARGE_PARAMETERS = 336_226_108
DDP = Layout("ddp", "bf16", 1, False, 8)


# --------------------------------------------------------------------------------------------------
# Arithmetic


@pytest.mark.parametrize("size", ["tiny", "base", "large"])
def test_parameters(size):
    config = load_config(ROOT / f"configs/bert_{size}.json")
    with torch.device("meta"):
        model = BertForPreTraining(config)
    assert cost.num_parameters(config) == sum(weight.numel() for weight in model.parameters())
    if size == "large":
        assert cost.num_parameters(config) == BERT_LARGE_PARAMETERS


def test_flops_and_hours_of_mlperf_by_hand():
    """configs/recipes/mlperf_448.args, all of its steps, all 512 positions and 76 predictions."""
    layer = 2 * 512 * (4 * 1024 * 1024 + 2 * 1024 * 4096) + 4 * 512 * 512 * 1024
    heads = 2 * 76 * (1024 * 1024 + 1024 * 30_522) + 2 * 1024 * 1024
    forward = 24 * layer + heads
    assert forward == 339_919_618_048
    flops = 6700 * 448 * training_flops(LARGE, 512, 76)
    assert flops == 3_001_600 * 3 * forward
    seconds = flops / (8 * 989e12 * 0.4)  # 967
    assert cost.hours(flops, 8, peak_flops("H100"), 0.4) == pytest.approx(seconds / 3600)


def test_state_by_hand():
    """Bytes per parameter, and of BERT-large."""
    assert cost.state_bytes(LARGE, DDP) == 16 * BERT_LARGE_PARAMETERS
    zero1 = DDP._replace(plugin="zero1")
    assert cost.state_bytes(LARGE, zero1) == (2 + 2 + 16 / 8) * BERT_LARGE_PARAMETERS
    hybrid = DDP._replace(plugin="hybrid")
    assert cost.state_bytes(LARGE, hybrid) == (2 + 2 + 4 + 4 + 8) * BERT_LARGE_PARAMETERS
    # Half of the layers' matrices and of the vocabulary.
    half = (24 * (4 * 1024**2 + 2 * 1024 * 4096) + 30_522 * 1024) // 2
    cut = hybrid._replace(tp_size=2)
    assert cost.state_bytes(LARGE, cut) == 20 * (BERT_LARGE_PARAMETERS - half)
    assert cost.state_bytes(LARGE, cut._replace(precision="fp32")) == 16 * (
        BERT_LARGE_PARAMETERS - half
    )


def test_activations_by_hand():
    """Per token: 34 bytes x hidden size x layers in 16 bits, the known figure without attention
    matrices, 10 of them on every tensor-parallel rank; 42 under autocast. And the embeddings.
    """
    hybrid = DDP._replace(plugin="hybrid")

    def per_token(layout):
        one, two = (cost.activation_bytes(LARGE, layout, number, 0) for number in (1, 2))
        return two - one

    assert per_token(hybrid) == 1024 * (24 * 34 + 3)
    assert per_token(hybrid._replace(tp_size=4)) == 1024 * (24 * (10 + 24 / 4) + 3)
    assert per_token(DDP) == 1024 * (24 * 42 + 5)
    assert per_token(DDP._replace(gradient_checkpointing=True)) == 1024 * (24 * 4 + 42 + 5)


SMALL = BertConfig(
    vocab_size=300, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
    intermediate_size=512, max_position_embeddings=64, hidden_act="gelu_new",
    attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12,
)  # fmt: skip


def batch_of(lengths, seq_length, num_predictions):
    """A batch of so many tokens each, with a few predictions."""
    mask = (torch.arange(seq_length)[None] < torch.tensor(lengths)[:, None]).long()
    num_examples = len(lengths)
    return with_indices({
        "input_ids": 5 * mask, "input_mask": mask, "segment_ids": 0 * mask,
        "masked_lm_positions": torch.arange(num_predictions).repeat(num_examples, 1),
        "masked_lm_ids": torch.ones(num_examples, num_predictions, dtype=torch.long),
        "masked_lm_weights": torch.ones(num_examples, num_predictions),
        "next_sentence_labels": torch.zeros(num_examples, 1, dtype=torch.long),
    })  # fmt: skip


def bytes_kept_for_backward(model, batch, autocast):
    """Of all tensors that a forward pass keeps, without weights and the batch itself."""
    tensors = [*model.parameters(), *batch.values()]
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept = {}  # the storages themselves, so that no address is used twice

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = predict(model, batch)
        losses = loss_sums(logits, batch)
    assert losses[0].requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dropout", [0.1, 0.0])
@pytest.mark.parametrize("unpad", [False, True], ids=["dense", "unpadded"])
@pytest.mark.parametrize("plugin, precision", [("ddp", "fp32"), ("ddp", "bf16"), ("zero1", "bf16")])
def test_activations_are_what_a_model_keeps(plugin, precision, unpad, dropout):
    SMALL.hidden_dropout_prob = dropout
    lengths, seq_length, num_predictions = [64, 30, 40, 20], 64, 3
    model = build_model(SMALL)
    if unpad:
        leave_out_padding(model)
    layout = Layout(plugin, precision, 1, False, 1)
    if plugin == "zero1":
        model.bfloat16()
    batch = batch_of(lengths, seq_length, num_predictions)
    kept = bytes_kept_for_backward(model, batch, layout.is_autocast)
    num_tokens = sum(lengths) if unpad else len(lengths) * seq_length
    predicted = len(lengths) * num_predictions
    expected = cost.activation_bytes(SMALL, layout, num_tokens, predicted)
    # The gradients of the logits are made later.
    expected -= predicted * SMALL.vocab_size * 8
    if dropout:  # on the CPU a mask has its input's type, on a GPU bytes
        of_layers, of_embeddings = (
            {"fp32": 4, "bf16": 2}[precision], 2 if plugin == "zero1" else 4
        )  # fmt: skip
        more = 2 * SMALL.num_hidden_layers * (of_layers - 1) + of_embeddings - 1
        expected += num_tokens * SMALL.hidden_size * more
    # Beside it: positions, statistics of layer norms, sums of attention.
    assert kept == pytest.approx(expected, rel=0.07)


def test_state_is_what_a_model_and_its_optimizer_hold(training_data):
    config = load_config(training_data / "config.json")
    model = build_model(config)
    optimizer = Lamb(parameter_groups(model, 0.01))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = [tensor for weight in model.parameters() for tensor in (weight, weight.grad)]
    held += [state[name] for state in optimizer.state.values() for name in "mv"]
    fp32 = DDP._replace(precision="fp32")
    assert cost.state_bytes(config, fp32) == sum(tensor.nbytes for tensor in held)


def test_disk_by_hand():
    checkpoint, model = 12 * BERT_LARGE_PARAMETERS, 4 * BERT_LARGE_PARAMETERS
    for steps, save_steps, keep_max, kept in (
        (13_700, 1000, 3, 3), (1500, 1000, 3, 2), (13_700, 1000, 0, 14), (13_700, 0, 3, 1),
    ):  # fmt: skip
        disk = cost.disk_bytes(LARGE, steps, save_steps, keep_max)
        assert disk == (kept, checkpoint, model)
        assert disk.total == kept * checkpoint + 2 * model
    assert cost.disk_bytes(LARGE, 0, 1000, 3).total == 0  # it only evaluates


def test_smallest_steps_per_update():
    """As many micro-batches as are needed, in even parts; None if not even one example fits."""
    one_gpu = DDP._replace(num_gpus=1)
    example = (512, 76)

    def needed(size):
        state = cost.state_bytes(LARGE, one_gpu)
        return state + cost.activation_bytes(LARGE, one_gpu, 512 * size, 76 * size)

    def smallest(gpu):
        return cost.smallest_steps_per_update(LARGE, one_gpu, 448, example, gpu)

    assert smallest(needed(448)) == 1
    assert smallest(needed(224)) == 2
    assert smallest(needed(30)) == 448 // 28
    assert smallest(needed(1)) == 448
    assert smallest(needed(1) - 1) is None


def test_published_times():
    """The table of docs/performance.md."""
    page = (ROOT / "docs/performance.md").read_text()
    table = page.partition("## Published times")[2].partition("|---|")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    assert len(rows) == 7
    for gpus, peak, samples, published, estimate, mfu in rows:
        number = int(gpus.split()[0].replace(",", ""))
        if gpu := peak_flops(gpus):
            assert f"{gpu / 1e12:,.0f}" == peak
        flops = float(samples) * 1e6 * training_flops(LARGE, 254, 38)
        peak = float(peak.replace(",", "")) * 1e12
        minutes = 60 * cost.hours(flops, number, peak, dry_run.MFU)
        assert float(estimate) == pytest.approx(minutes, rel=0.02)
        for one, its_mfu in zip(published.split(" to "), mfu.split(" to "), strict=True):
            its_minutes = 60 * cost.hours(flops, number, peak, float(its_mfu))
            assert float(one) == pytest.approx(its_minutes, rel=0.07)  # of two digits


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def no_gpu_and_no_group(monkeypatch):
    """Asking for a GPU, or for a process group, fails the test."""

    def refuse(*arguments, **options):
        raise AssertionError

    for name in ("is_available", "device_count", "init", "current_device"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(dist, "init_process_group", refuse)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe(recipe, tfrecord_folder, no_gpu_and_no_group, tmp_path, monkeypatch, capsys):
    shape = (128, 20) if recipe.stem == "nvidia_phase1" else (512, 76)
    (file,), (index,) = tfrecord_folder([4], seq_length=shape[0], predictions=shape[1])
    os.remove(index)
    monkeypatch.chdir(ROOT)  # of the configuration that a recipe names
    main([f"@{recipe}", f"--tfrecord_train={file}", "--dry_run"])
    output = capsys.readouterr()
    assert output.err == ""
    rows = rows_of(output.out)
    steps, batch_size = (
        int(re.search(rf"--{name}=(\d+)", recipe.read_text())[1])
        for name in ("num_train_steps", "train_batch_size")
    )
    samples = steps * batch_size
    assert rows["model"] == f"{BERT_LARGE_PARAMETERS:,} parameters, from random weights"
    assert rows["steps"].startswith(f"{steps:,} x {batch_size:,} examples = {samples:,} samples")
    assert rows["epochs"].startswith(f"{samples / 4:,.2f} ")
    flops = samples * training_flops(LARGE, *shape)
    assert rows["TFLOPs in all"].split() == [f"{flops / 1e12:,.0f}"] * 2  # no padding in the file
    for gpu in ("A100", "H100"):
        for number in (1, 8):
            (hours, _) = rows[f"{number} x {gpu}"].split()
            expected = cost.hours(flops, number, peak_flops(gpu), dry_run.MFU)
            assert float(hours.replace(",", "")) == pytest.approx(expected, rel=0.006)
    assert f"1 GPU x {batch_size:,} examples" in rows
    assert f"8 GPUs x {batch_size // 8:,} examples" in rows
    assert os.listdir(tmp_path) == [os.path.basename(file)]


def rows_of(output):
    """{first column: rest} of the lines of an output."""
    words = [re.split(r"  +", line.strip(), maxsplit=1) for line in output.splitlines()]
    return {name: rest[0] for name, *rest in words if rest}


def dry_run_of(data, *more, **options):
    return train_here(data, f"{data}/absent", "--dry_run", *more, **options)


def test_files_are_counted_by_their_sizes(training_data, no_gpu_and_no_group):
    rows = rows_of(dry_run_of(training_data).stdout)
    counts = [
        len((training_data / f"idx/train/part-0000{number}.idx").read_text().splitlines())
        for number in range(2)
    ]
    found, words = re.match(r"([\d,]+) (.*)", rows["examples"]).groups()
    assert int(found.replace(",", "")) == pytest.approx(sum(counts), rel=0.01)
    assert words == f"in 2 files, by their sizes and the {counts[0]:,} of the first"
    assert not (training_data / "absent").exists()


def test_instance_files_and_padding(training_data, no_gpu_and_no_group, tmp_path):
    shape = ("--max_seq_length=32", "--max_predictions_per_seq=5", "--dupe_factor=1")
    vocab = training_data / "vocab.txt"
    create(UNICODE_TEXT, tmp_path / "part", *shape, "--output_format=instances", vocab=vocab)
    both = [
        dry_run_of(training_data, f"--tfrecord_train={path}").stdout
        for path in (training_data / "train/part-00000", tmp_path / "part")
    ]
    assert both[0] == both[1]
    dense, unpadded = rows_of(both[0])["8 GPUs x 2 examples"].split()[:2]
    assert float(unpadded) <= float(dense)
    flops = [float(word.replace(",", "")) for word in rows_of(both[0])["TFLOPs in all"].split()]
    assert flops[0] > flops[1]


def test_tensor_parallelism_needs_no_gpus_here(training_data, no_gpu_and_no_group):
    process = dry_run_of(training_data, "--plugin=hybrid", "--tp_size=2")
    rows = rows_of(process.stdout)
    assert "8 GPUs x 4 examples" in rows and "8 x H100" in rows and "1 x H100" not in rows


def test_what_is_wrong_is_reported_at_once(training_data, no_gpu_and_no_group):
    more = ("--seed=-1", "--max_seq_length=64", "--plugin=ddp", "--tp_size=2")
    process = dry_run_of(training_data, *more, check=False)
    assert_refused(process, "--seed=-1", "examples of 32 tokens, but --max_seq_length=64", "hybrid")


def test_batch_that_cannot_be_divided(training_data, no_gpu_and_no_group):
    process = dry_run_of(training_data, "--train_batch_size=12")
    assert "8 GPUs: --train_batch_size=12 is not divisible by 8" in process.stdout


def test_without_it_no_flag_may_be_missing(training_data):
    given = [
        flag
        for flag in flags(training_data, "unused")
        if not flag.startswith(("--output_dir", "--tfrecord_eval"))
    ]
    expected = "the following arguments are required: --output_dir, --tfrecord_eval"
    with pytest.raises(FlagError, match=expected):
        main(given)
