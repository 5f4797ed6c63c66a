"""What only a CUDA device can show. Without one each test is skipped, and says what it would have shown."""

import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask
from camp_model.losses import hardest_negative_bce
from camp_model.matchers.prepared import TILES
from stages.device import Precision

DIM = 256


def needs_cuda(shows):
    return pytest.mark.skipif(not torch.cuda.is_available(), reason=f"no CUDA device; would show that {shows}")


def make(dtype=torch.float32, **switches):
    torch.manual_seed(0)
    config = CampConfig(vocab_size=200, region_dim=2048, word_dim=300, dim=DIM, **switches)
    return CAMP(config).to(dtype).eval()


def inputs(images=24, captions=40):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(images, 36, 2048, generator=generator)
    counts = torch.randint(1, 37, (images,), generator=generator)
    tokens = torch.randint(0, 200, (captions, 16), generator=generator)
    lengths = torch.randint(1, 17, (captions,), generator=generator)
    return features, length_mask(counts, 36), tokens, lengths


def encode(model, batch, device):
    features, region_mask, tokens, lengths = batch
    dtype = next(model.parameters()).dtype
    regions = model.encode_regions(features.to(device, dtype), region_mask.to(device))
    words = model.encode_captions(tokens.to(device), lengths)
    return regions, region_mask.to(device), words, length_mask(lengths, 16).to(device)


def deviation(values, exact):
    return ((values.double().cpu() - exact).abs().max() / exact.abs().max()).item()


@pytest.fixture
def cuda():
    device = torch.device("cuda")
    yield device
    Precision("fp32", device)


@needs_cuda("fp32 encodes regions and words on the GPU as on the CPU, and that tf32 does not")
@torch.no_grad()
def test_encoders_at_fp32_are_those_of_the_cpu(cuda):
    batch, model = inputs(), make()
    exact = [value for value in encode(make(torch.float64), batch, "cpu") if value.is_floating_point()]
    on_cpu = [value for value in encode(model, batch, "cpu") if value.is_floating_point()]
    errors = {}
    for name in ("fp32", "tf32"):
        Precision(name, cuda)
        on_gpu = [value for value in encode(model.to(cuda), batch, cuda) if value.is_floating_point()]
        errors[name] = [deviation(value, expected) for value, expected in zip(on_gpu, exact, strict=True)]
    assert max(errors["fp32"]) < 1e-5 > max(deviation(v, e) for v, e in zip(on_cpu, exact, strict=True)), errors
    if torch.cuda.get_device_capability() >= (8, 0):  # TF32 came with Ampere
        assert min(errors["tf32"]) > 3 * max(errors["fp32"]), errors


@needs_cuda("tiles at fp32 are as exact as the CPU's, for every way to match")
@pytest.mark.parametrize(
    "switches",
    [{}, {"gate": "elementwise"}, {"hops": 2}, {"pooling": "mlp"}, {"matcher": "scan"}, {"matcher": "joint"}],
)
@torch.no_grad()
def test_tiles_are_those_of_float64(cuda, switches):
    Precision("fp32", cuda)
    batch = inputs()
    wide = make(torch.float64, **switches)
    regions, region_mask, words, word_mask = encode(wide, batch, "cpu")
    prepared = wide.prepare_regions(regions, region_mask), wide.prepare_words(words, word_mask)
    exact = wide.match(*prepared, TILES).logits
    scores = (
        make(**switches)
        .to(cuda)
        .score_matrix(regions.float().to(cuda), region_mask.to(cuda), words.float().to(cuda), word_mask.to(cuda))
    )
    torch.testing.assert_close(scores.double().cpu(), exact, rtol=1e-4, atol=1e-4)


@needs_cuda(
    "a step in bf16 has nearly the gradient of one in fp32, and tiles that take little more than half the memory"
)
def test_a_step_in_bf16(cuda):
    batch, index = inputs(captions=24), torch.arange(24, device=cuda)
    losses, gradients, peaks = {}, {}, {}
    for name in ("fp32", "bf16"):
        model, precision = make().to(cuda).train(), Precision(name, cuda)
        with precision.autocast():
            encoded = encode(model, batch, cuda)
            assert encoded[2].dtype == torch.float32  # cuDNN's GRU would give float16, and no loss is scaled for it
            with torch.no_grad():
                images, captions = model.prepare_regions(*encoded[:2]), model.prepare_words(*encoded[2:])
                torch.cuda.synchronize()
                held = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                matched = model.match(images, captions, TILES)
                peaks[name] = torch.cuda.max_memory_allocated() - held
            loss = hardest_negative_bce(model, *encoded, index, gate_supervision=1.0)
        loss.backward()
        losses[name] = loss.item()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert matched.words.fused.dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert gradients["bf16"].isfinite().all()
    assert torch.cosine_similarity(gradients["bf16"], gradients["fp32"], dim=0) > 0.95
    assert peaks["bf16"] < 0.75 * peaks["fp32"], peaks
