"""What both versions share: a student that is frozen at first, when its head is new."""

import pytest

from data2vec.objective.latent import LatentObjective
from helpers.small_models import batch, batch2, objective, objective2


@pytest.mark.parametrize("version", [1, 2])
def test_frozen_student_gets_no_gradients_and_its_head_does(version: int) -> None:
    whole: LatentObjective = objective(freeze_steps=2) if version == 1 else objective2(freeze_steps=2)
    given = batch() if version == 1 else batch2()
    whole.train()
    for step, learns in ((2, False), (3, True)):
        whole.zero_grad()
        whole.before_step(step)
        whole(given).loss.backward()
        assert any(p.grad is not None for p in whole.student.parameters()) is learns
        new = whole.get_submodule("head" if version == 1 else "decoder")
        assert all(p.grad is not None for p in new.parameters())


@pytest.mark.parametrize("version", [1, 2])
def test_student_may_skip_gradients_only_if_it_is_ever_frozen(version: int) -> None:
    make = objective if version == 1 else objective2
    assert make(freeze_steps=2).may_skip_parameters and not make().may_skip_parameters
