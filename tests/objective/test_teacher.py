import pytest
import torch

from data2vec.objective.teacher import Teacher, TeacherSettings
from helpers.small_models import batch, encoder, objective, targets_of


def kick(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def test_decay_grows_linearly_and_stays() -> None:
    teacher = Teacher(encoder(), TeacherSettings(decay=0.9, end_decay=0.99, anneal_steps=10))
    assert [teacher.decay(step) for step in (0, 5, 10, 100)] == pytest.approx([0.9, 0.945, 0.99, 0.99])
    constant = Teacher(encoder(), TeacherSettings(decay=0.5, end_decay=0.99, anneal_steps=0))
    assert constant.decay(1) == 0.99


def test_a_step_is_the_moving_average() -> None:
    student = encoder()
    teacher = Teacher(student, TeacherSettings(decay=0.75, end_decay=0.75, local_encoder="averaged", position_encoder="copied"))
    before = {name: p.clone() for name, p in teacher.ema.named_parameters()}
    kick(student)
    teacher.update(student, 1)
    theirs = dict(student.named_parameters())
    for name, p in teacher.ema.named_parameters():
        expected = theirs[name] if name.startswith("position_encoder") else 0.75 * before[name] + 0.25 * theirs[name]
        torch.testing.assert_close(p, expected)


def test_a_frozen_teacher_does_not_move() -> None:
    student = encoder()
    teacher = Teacher(student, TeacherSettings(decay=0.9, end_decay=1.0, anneal_steps=5))
    before = [p.clone() for p in teacher.parameters()]
    kick(student)
    teacher.update(student, 5)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), before, strict=True))
    teacher.update(student, 4)
    assert not any(torch.equal(p, q) for p, q in zip(teacher.parameters(), before, strict=True))


def test_the_average_is_float32_also_of_a_half_precision_student() -> None:
    student = encoder()
    teacher = Teacher(student, TeacherSettings(decay=0.5, end_decay=0.5))
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
