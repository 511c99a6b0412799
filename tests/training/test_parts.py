"""The trainer's parts, one by one."""

import dataclasses
import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from model.attention import WindowAttention, naive_attention
from model.checkpoint import save
from model.network import TCM
from model.training.coarse import shorten, shortest
from model.training.data import Crops, Indexes, find_images, split_validation
from model.training.device import Place
from model.training.loss import rate_distortion
from model.training.options import NOMINAL_ROUNDING
from model.training.progress import Reporter
from model.training.quantiles import settle_quantiles
from model.training.regress import fit_synthesis
from model.training.rescale import rescale_latents
from model.training.schedule import Schedule
from model.training.spread import spread_latents, spread_order
from model.training.start import block_transform, quantiser_step
from model.training.validate import load_validation
from model.training.widen import widen_latents
from tests.training.conftest import SMALL


def crops_of(photographs, count=8):
    crops = Crops(find_images(photographs), 64, seed=1)
    return torch.stack([crops[i] for i in range(count)])


@pytest.fixture
def started(photographs):
    torch.manual_seed(0)
    net = TCM(SMALL).eval()
    block_transform(net, crops_of(photographs), 0.05)
    return net


def psnr(a, b):
    return float(-10 * torch.log10((a - b).square().mean()))


def test_a_damaged_file_is_named_and_skipped(photographs, caplog):
    crops = Crops(find_images(photographs), 64, seed=0)
    with caplog.at_level(logging.WARNING):
        for i in range(24):
            assert crops[i].shape == (3, 64, 64)
    assert sum("05-damaged.png skipped" in line for line in caplog.messages) == 1
    assert sum("06-small.png skipped: 40x40" in line for line in caplog.messages) == 1


def test_grey_of_sixteen_bits_is_no_white(tmp_path, caplog):
    """Found by reading: it was trained on as pure white, and floating-point numbers as black."""
    Image.fromarray(np.full((80, 80), 0x4000, np.uint16)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((80, 80), 0.5, np.float32)).save(tmp_path / "floats.tif")
    crops = Crops(find_images(tmp_path), 64, seed=0)
    assert [float(crops[i].mean()) for i in range(4)] == pytest.approx([0.25] * 4, abs=0.01)
    assert sum("floats.tif skipped: floating-point" in line for line in caplog.messages) == 1


def test_a_sample_follows_from_seed_and_number_alone(photographs):
    paths = find_images(photographs)
    first, second, other = Crops(paths, 64, 3), Crops(paths, 64, 3, cache_bytes=0), Crops(paths, 64, 4)
    second[7]
    assert torch.equal(first[20], second[20])
    assert not torch.equal(first[20], other[20])


def test_linked_folders_are_searched_once(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "elsewhere"
    (inside / "own").mkdir(parents=True)
    outside.mkdir()
    for path in (inside / "own" / "a.png", outside / "b.jpg"):
        Image.new("RGB", (8, 8)).save(path)
    (inside / "linked").symlink_to(outside)
    (inside / "own" / "up").symlink_to(inside)
    (inside / "an alias").symlink_to(inside / "own")
    assert find_images(inside) == [inside / "linked" / "b.jpg", inside / "own" / "a.png"]


def test_processes_share_the_samples_out(photographs):
    parts = [iter(Indexes(5, 2, rank, 2)) for rank in (0, 1)]
    assert [[next(part) for _ in range(4)] for part in parts] == [[20, 21, 24, 25], [22, 23, 26, 27]]


def test_validation_is_kept_out_of_training(photographs):
    paths = find_images(photographs)
    training, kept = split_validation(paths, 3)
    assert len(kept) == 3
    assert sorted([*training, *kept]) == paths
    assert split_validation(paths, 0) == (paths, [])
    for few in range(1, 6):  # something is left to train on
        training, kept = split_validation(paths[:few], 8)
        assert (len(training), len(kept)) == (few - few // 2, few // 2)


def test_photographs_that_cannot_be_measured_on_are_named(photographs, tmp_path, caplog):
    (tmp_path / "damaged.png").write_bytes(b"no image")
    Image.new("RGB", (40, 200)).save(tmp_path / "narrow.png")
    sound = find_images(photographs)[0]
    images = load_validation([tmp_path / "damaged.png", sound, tmp_path / "narrow.png"], 64)
    assert len(images) == 1
    assert "damaged.png skipped" in caplog.text
    assert "narrow.png skipped: 40x200 is smaller" in caplog.text
    Image.new("RGB", (180, 180)).save(tmp_path / "small.png")
    assert [image.shape[-1] for image in load_validation([tmp_path / "small.png"], 128)] == [128]
    assert load_validation([tmp_path / "small.png"], 128, "ms-ssim") == []  # 128 are too few for its five scales


def test_the_block_transform_is_a_transform(started, photographs):
    x = crops_of(photographs)
    with torch.no_grad():
        y = started.g_a(x)
        assert psnr(started.g_s(y), x) > 23
        small, large = quantiser_step(0.05), quantiser_step(0.0125)
        assert large == pytest.approx(2 * small)
        energy = (y.var(dim=(0, 2, 3)) * small**2).sum() / 768
        assert energy == pytest.approx(float(x.var(dim=(0, 2, 3)).mean()), rel=0.1)  # orthonormal


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_a_short_cut_is_the_same_network(started, photographs, stages):
    short, x = shorten(started, stages), crops_of(photographs, 2)
    with torch.no_grad():
        torch.testing.assert_close(short.g_a(x), started.g_a(x), atol=0.05, rtol=0.01)
        y = started.g_a(x)
        torch.testing.assert_close(short.g_s(y), started.g_s(y), atol=0.01, rtol=0.01)
    assert short.g_a[-1].weight is started.g_a[-1].weight


def test_no_short_cut_through_stages_that_have_learnt():
    with pytest.raises(ValueError, match="not the linear block transform"):
        shorten(TCM(SMALL).eval(), 2)


def test_the_shortest_way_leaves_out_what_is_still_linear(started):
    assert len(shortest(started).g_a) < len(shorten(started, 1).g_a)
    with torch.no_grad():
        started.g_a[SMALL.depth + 2].conv1_2.weight.normal_()
    assert len(shortest(started).g_a) == len(shorten(started, 1).g_a)


def test_least_squares_improve_the_synthesis(started, photographs):
    x = crops_of(photographs)
    with torch.no_grad():
        before = psnr(started(x).x_hat, x)
        fit_synthesis(started, x.split(4))
        assert psnr(started(x).x_hat, x) > before


def test_rescaled_latents_give_the_same_picture(started, photographs):
    x = crops_of(photographs, 2)
    with torch.no_grad():
        before = started.g_s(started.g_a(x))
        means, scales = started(x).means, started(x).scales
        rescale_latents(started, 1.0)
        after = started(x)
        torch.testing.assert_close((after.means, after.scales), (means, scales))
        rescale_latents(started, 3.0)
        torch.testing.assert_close(started.g_s(started.g_a(x)), before, atol=1e-4, rtol=1e-3)


def test_a_wider_network_knows_what_the_narrow_one_knew(started, photographs):
    x = crops_of(photographs)
    wide = TCM(dataclasses.replace(SMALL, M=64, slices=4)).eval()
    block_transform(wide, x, 0.05)
    with torch.no_grad():
        for p in started.parameters():
            p += 0.01 * torch.randn_like(p)
        widen_latents(started, wide, wide.g_a(x).std(dim=(0, 2, 3)))
        before, after = started(x[:2]), wide(x[:2])
    torch.testing.assert_close(after.means[:, :32], before.means, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.scales[:, :32], before.scales, atol=1e-3, rtol=1e-3)


def test_channels_are_dealt_out_few_strong_ones_first():
    strength = torch.arange(64.0).flip(0)  # channel 0 is the strongest
    order = spread_order(strength, slices=4)
    assert sorted(order) == list(range(64))
    slices = [order[i : i + 16] for i in range(0, 64, 16)]
    assert slices[3] == list(range(slices[3][0], slices[3][0] + 16))  # the last slice: strong ones only
    strong = [sum(channel <= slices[3][-1] for channel in part) for part in slices]
    assert strong == sorted(strong)
    assert strong[0] >= 1
    assert [part[0] for part in slices] == [0, *(sum(strong[: i + 1]) for i in range(3))]


def test_a_network_dealt_out_anew_gives_the_same_picture(started, photographs):
    x = crops_of(photographs)
    new = TCM(SMALL).eval()
    with torch.no_grad():
        spread_latents(started, new, started.g_a(x))
        torch.testing.assert_close(new.g_s(new.g_a(x)), started.g_s(started.g_a(x)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(new.h_a(new.g_a(x)), started.h_a(started.g_a(x)), atol=1e-4, rtol=1e-4)
        assert not torch.equal(new.g_a(x), started.g_a(x))


def test_quantiles_settle_where_their_loss_is_zero():
    net = TCM(SMALL)
    settle_quantiles(net.entropy_bottleneck)
    assert net.aux_loss().item() < 0.01


def test_the_bias_gradient_of_a_sixteenth_is_that_of_all_on_average(monkeypatch):
    monkeypatch.setattr("model.attention._FEW_SCORES", 0)  # as if they were many
    torch.manual_seed(0)
    attention = WindowAttention(8, 4, 4, shifted=True)
    x, weight = torch.randn(2, 64, 16, 8), torch.randn(2, 64, 16, 8)

    def gradient():
        attention.zero_grad()
        (attention(x, 8, 8) * weight).sum().backward()
        return attention.relative_position_params.grad.clone()

    sampled = torch.stack([gradient() for _ in range(200)]).mean(0)
    import model.attention

    share = model.attention._GRADIENT_SHARE
    try:
        model.attention._GRADIENT_SHARE = 1
        # one window in one is still drawn with replacement: average as well
        exact = torch.stack([gradient() for _ in range(40)]).mean(0)
    finally:
        model.attention._GRADIENT_SHARE = share
    assert torch.nn.functional.cosine_similarity(sampled.flatten(), exact.flatten(), dim=0) > 0.9


def test_few_windows_give_the_bias_its_exact_gradient():
    torch.manual_seed(0)
    q, k, v = (torch.randn(6, 2, 16, 4) for _ in range(3))
    mask = torch.randn(1, 2, 16, 16, requires_grad=True)
    out = naive_attention(q, k, v, mask)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v, mask.detach()))
    out.square().sum().backward()
    direction, step = torch.randn_like(mask), 1e-3
    with torch.no_grad():
        ahead, behind = (naive_attention(q, k, v, mask + s * step * direction).square().sum() for s in (1, -1))
    assert float((mask.grad * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-2)


def test_bfloat16_trains_the_same_network(started, photographs):
    """Its rounding moves the loss by little, and every parameter that learns in float32 learns."""
    x = crops_of(photographs, 2)
    place = Place(torch.device("cpu"), rank=0, processes=1, bf16=True)
    lowered = place.lower(started)
    losses, learning = [], []
    for net in (started, lowered):
        started.zero_grad()
        started.eval()
        loss = rate_distortion(net(x), x, 0.05, "mse").total
        loss.backward()
        losses.append(loss.item())
        learning.append({name for name, p in started.named_parameters() if p.grad is not None and p.grad.any()})
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert learning[1] == learning[0]


def test_symbols_chosen_by_rate_lower_the_loss_that_they_are_chosen_for(started, photographs):
    x = crops_of(photographs, 4)
    figures = []
    for weight in (None, NOMINAL_ROUNDING):
        started.rounding = weight
        with torch.no_grad():
            figures.append(rate_distortion(started(x), x, 0.05, "mse"))
    nearest, by_rate = figures
    assert by_rate.bpp < nearest.bpp
    assert by_rate.mse > nearest.mse
    assert by_rate.total < nearest.total
    started.train()
    rate_distortion(started(x), x, 0.05, "mse").total.backward()
    assert started.cc_scale_transforms[0][-1].weight.grad.abs().sum() > 0
    assert started.g_a[-1].weight.grad.isfinite().all()


def test_rate_and_distortion_are_what_they_say(started, photographs):
    x = crops_of(photographs, 2)
    with torch.no_grad():
        out = started(x)
    loss = rate_distortion(out, x, 0.01, "mse")
    bits = sum(float(-torch.log2(likelihood).sum()) for likelihood in out.likelihoods.values())
    assert float(loss.bpp) == pytest.approx(bits / (2 * 64 * 64), rel=1e-4)
    assert float(loss.total) == pytest.approx(0.01 * 255**2 * float(loss.mse) + float(loss.bpp), rel=1e-4)
    assert loss.psnr == pytest.approx(psnr(out.x_hat, x), abs=1e-3)


def test_what_a_run_is_called_is_printed_as_it_is(tmp_path, capsys):
    """Found by reading: brackets in the run's folder were styles, or a traceback at its end."""
    with Reporter(tmp_path / "run [/old]") as report:
        report.record("finished", 1, {"file": "run [/old]/x [b].safetensors"})
    assert "run [/old]/x [b].safetensors" in capsys.readouterr().err


def test_lines_for_a_file_are_not_wrapped(tmp_path, capsys):
    with Reporter(tmp_path) as report:
        report.record("finished", 1, {"file": "x" * 200})
    assert f"finished at step 1: file {'x' * 200}" in capsys.readouterr().err


def test_a_run_outlives_its_terminal(tmp_path, monkeypatch):
    def gone(_):
        raise OSError(5, "Input/output error")

    with Reporter(tmp_path) as report:
        report.console.file = io.StringIO()
        monkeypatch.setattr(report.console.file, "write", gone, raising=False)
        report.record("validation", 1, {"bpp": 1.0})
        report.record("finished", 1, {"file": "model"})
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_the_log_is_json_whatever_the_figures(tmp_path):
    with Reporter(tmp_path, quiet=True) as report:
        report.record("train", 1, {"loss": float("nan"), "bpp": float("inf"), "rate": 0.5})
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"kind": "train", "step": 1, "loss": None, "bpp": None, "rate": 0.5}


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "g_a.0.* is not finite"), (1e5, "float16: leave out --half")]
)
def test_weights_that_nothing_can_run_are_not_written(tmp_path, value, message):
    net = TCM(SMALL)
    with torch.no_grad():
        next(net.g_a.parameters())[0] = value
    with pytest.raises(ValueError, match=message):
        save(net, tmp_path / "x.safetensors", name="x", lmbda=0.01, metric="mse", half=True)
    assert not list(tmp_path.iterdir())


def test_schedules():
    paper = Schedule(epochs=50, milestones=(45, 48), steps_per_epoch=10)
    assert [paper.factor(step, 0) for step in (0, 449, 450, 480)] == pytest.approx([1, 1, 0.1, 0.01])
    assert paper.done(500, 0) == 1
    clock = Schedule(minutes=10, cool_from=0.5, floor=0.1, warmup=4)
    assert [clock.factor(0, 0), clock.factor(9, 200), clock.factor(9, 600)] == pytest.approx([0.25, 1, 0.1])
    assert clock.done(9, 300) == 0.5
    with pytest.raises(ValueError, match="one of the three"):
        Schedule(minutes=1, steps=1)
