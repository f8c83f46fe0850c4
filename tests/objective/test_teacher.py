import pytest
import torch
from pydantic import ValidationError

from data2vec.errors import UserError
from data2vec.nn.encoder import build_encoder
from data2vec.objective.teacher import Teacher, TeacherSettings
from helpers.small_models import STEPS, batch, batch2, encoder, modality, objective, objective2, targets_of, with_masks


def kick(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def test_decay_grows_linearly_and_stays() -> None:
    teacher = Teacher(encoder(), TeacherSettings(decay=0.9, end_decay=0.99, anneal_steps=10), STEPS)
    assert [teacher.decay(step) for step in (0, 5, 10, 100)] == pytest.approx([0.9, 0.945, 0.99, 0.99])
    constant = Teacher(encoder(), TeacherSettings(decay=0.5, end_decay=0.99, anneal_steps=0), STEPS)
    assert constant.decay(1) == 0.99


def test_a_step_is_the_moving_average() -> None:
    student = encoder()
    teacher = Teacher(
        student, TeacherSettings(decay=0.75, end_decay=0.75, local_encoder="averaged", position_encoder="copied"), STEPS
    )
    before = {name: p.clone() for name, p in teacher.ema.named_parameters()}
    kick(student)
    teacher.update(student, 1)
    theirs = dict(student.named_parameters())
    for name, p in teacher.ema.named_parameters():
        expected = theirs[name] if name.startswith("position_encoder") else 0.75 * before[name] + 0.25 * theirs[name]
        torch.testing.assert_close(p, expected)


def test_a_frozen_teacher_does_not_move() -> None:
    student = encoder()
    teacher = Teacher(student, TeacherSettings(decay=0.9, end_decay=1.0, anneal_steps=5), STEPS)
    before = [p.clone() for p in teacher.parameters()]
    kick(student)
    teacher.update(student, 5)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), before, strict=True))
    teacher.update(student, 4)
    assert not any(torch.equal(p, q) for p, q in zip(teacher.parameters(), before, strict=True))


def test_the_average_is_float32_also_of_a_half_precision_student() -> None:
    student = encoder()
    teacher = Teacher(student, TeacherSettings(decay=0.5, end_decay=0.5), STEPS)
    student.to(torch.bfloat16)
    teacher.update(student, 1)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


def test_the_teacher_never_trains() -> None:
    whole = objective(encoder_changes={"dropout": 0.5, "layerdrop": 0.5})
    whole.train()
    assert whole.student.training and not any(module.training for module in whole.teacher.modules())
    assert not any(p.requires_grad for p in whole.teacher.parameters())


def test_shared_copied_and_averaged_agree_before_the_first_step() -> None:
    outputs = []
    for source in ("shared", "copied", "averaged"):
        whole = objective(teacher=TeacherSettings(local_encoder=source, position_encoder=source))
        outputs.append(whole(batch()).loss)
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


def test_a_teacher_that_sees_only_the_masked_positions_ignores_the_rest() -> None:
    one, other = batch(0), batch(1)
    features = [torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    features[1] = torch.where(one.mask[..., None], features[0], torch.zeros(()))
    for context, same in (("masked", True), ("full", False)):
        whole = objective(teacher=TeacherSettings(context=context), target={"per_layer_norms": ("layer",), "top_k": 2})
        first, second = (targets_of(whole, b, f)[one.mask] for b, f in zip((one, other), features, strict=True))
        assert torch.allclose(first, second, atol=1e-5) is same


def test_a_shared_prenet_is_the_students_and_the_rest_is_the_average() -> None:
    shape = {"prenet_layers": 1, "extra_tokens": 1}
    whole = {
        prenet: objective(encoder_changes=shape, teacher=TeacherSettings(prenet=prenet), target={"top_k": 1})
        for prenet in ("averaged", "shared")
    }
    features = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(2))

    def targets() -> list[torch.Tensor]:
        return [targets_of(each, batch(), features) for each in whole.values()]

    torch.testing.assert_close(*targets())  # before the first step they are one
    before = targets()
    for each in whole.values():
        kick(each.student.transformer.blocks[0])
    averaged, shared = (torch.equal(x, y) for x, y in zip(before, targets(), strict=True))
    assert averaged
    assert not shared


def test_a_teacher_without_a_prenet_of_its_own_follows_blocks_that_have_constants() -> None:
    """Stochastic depth keeps its chance beside the weights."""
    shape = {"prenet_layers": 1, "drop_path": 0.5}
    whole = objective(
        encoder_changes=shape, teacher=TeacherSettings(prenet="shared", decay=0, end_decay=0), target={"top_k": 1}
    )
    kick(whole.student)
    whole.after_step(1)
    mine, theirs = whole.teacher.ema["transformer"].blocks[2], whole.student.transformer.blocks[2]
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def test_half_life_is_a_share_of_the_steps() -> None:
    teacher = Teacher(encoder(), TeacherSettings(half_life=0.1), 1000)
    assert teacher.decay(1) ** 100 == pytest.approx(0.5) and teacher.decay(1) == teacher.decay(1000)
    growing = Teacher(encoder(), TeacherSettings(half_life=0.01, end_half_life=0.5, anneal=0.2), 1000)
    assert [growing.decay(step) for step in (0, 200, 900)] == pytest.approx([0.5**0.1, 0.5**0.002, 0.5**0.002])
    assert growing.decay(100) == pytest.approx((0.5**0.1 + 0.5**0.002) / 2)


def test_half_life_survives_writing_and_reading_settings() -> None:
    settings = TeacherSettings(half_life=0.1, end_half_life=0.3, anneal=0.5)
    assert settings.decay is None
    assert TeacherSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"half_life": 0.1, "decay": 0.9}, "half_life and decay are two schedules; set decay to null"),
        ({"decay": None}, "decay: null needs a half_life"),
        ({"half_life": 0.1, "anneal": 0.1}, "belong together"),
        ({"end_half_life": 0.1, "anneal": 0.1}, "belong together"),
        ({"window": 4}, "window 4 is not odd, so it has no centre; set 5"),
    ],
)
def test_teacher_settings_that_contradict_each_other_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherSettings(**given)


def masked_attention(attention: torch.nn.Module, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Self-attention of `x` (B, T, D) in which row i sees the columns of `allowed` (B, T, T), one head at a time."""
    parts, heads = attention.qkv(x).chunk(3, dim=-1), []
    for q, k, v in zip(*(part.chunk(attention.heads, dim=-1) for part in parts), strict=True):
        logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, float("-inf"))
        heads.append(logits.softmax(-1) @ v)
    return attention.out(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("kind", ["speech", "vision", "text"])
@torch.no_grad()
def test_window_restricts_attention_to_neighbours_along_each_axis(kind: str, extra: int) -> None:
    whole, given = objective2(kind, {"extra_tokens": extra}, teacher=TeacherSettings(window=3)), batch2(kind)
    features, _ = whole.student.local_encoder(given)
    found = next(whole.teacher.block_outputs(whole.student, given, features, None, "attention")).state
    T, columns = features.shape[1], 5 if kind == "vision" else features.shape[1]
    near = [[abs(i // columns - j // columns) <= 1 and abs(i % columns - j % columns) <= 1 for j in range(T)] for i in range(T)]
    allowed = torch.ones(len(features), extra + T, extra + T, dtype=torch.bool)
    allowed[:, extra:, extra:] = torch.tensor(near)
    assert allowed[0, -1].sum() == extra + (4 if kind == "vision" else 2)
    transformer = whole.teacher.ema["transformer"]
    x = transformer.embed(whole.student.position_encoder(features, None))
    if kind == "speech":  # which has a bias, too
        whole.student.position_encoder.alibi.scale.zero_()
        found = next(whole.teacher.block_outputs(whole.student, given, features, None, "attention")).state
    torch.testing.assert_close(found, masked_attention(transformer.blocks[0].attention, x, allowed)[:, extra:])


@torch.no_grad()
def test_window_with_padding_is_finite_and_that_of_the_input_alone() -> None:
    whole = objective2("text", teacher=TeacherSettings(window=3), target={"per_layer_norms": ("layer",), "top_k": 2})
    given, padding = batch2("text"), torch.arange(20) >= torch.tensor([20, 12, 5])[:, None]
    features, _ = whole.student.local_encoder(given)
    targets = targets_of(whole, given, features, padding)
    assert targets.isfinite().all()
    alone = with_masks(given.input[2:, :5], torch.zeros(1, 5, dtype=torch.bool))
    torch.testing.assert_close(targets[2:, :5], targets_of(whole, alone, features[2:, :5]))


def test_window_of_the_whole_input_is_no_window() -> None:
    for kind in ("vision-relative", "speech"):
        whole, given = (objective2(kind, teacher=TeacherSettings(window=window)) for window in (None, 41)), batch2(kind)
        torch.testing.assert_close(*(each(given).loss for each in whole))


@torch.no_grad()
def test_masked_input_of_the_teacher_is_that_of_the_student() -> None:
    """A share of the positions has the mask vector, others at each call, and the same for the same random state."""
    whole, given = objective(teacher=TeacherSettings(mask_prob=0.25)), batch()
    features, seen = torch.randn(3, 20, 16), []
    whole.student.position_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        targets_of(whole, given, features)
    masked = (seen[0] == whole.student.local_encoder.mask_vector).all(-1)
    assert masked.sum(1).tolist() == [5, 5, 5]
    assert torch.equal(seen[0][~masked], features[~masked])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_masked_input_of_the_teacher_without_a_mask_vector_is_refused() -> None:
    student = build_encoder(modality("vision"), encoder().transformer.settings)
    student.local_encoder.mask_vector = None
    with pytest.raises(UserError, match=r"objective.teacher.mask_prob: 0.1 needs a mask vector: set modality.mask_vector"):
        Teacher(student, TeacherSettings(mask_prob=0.1), STEPS)
