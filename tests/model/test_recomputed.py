"""A tensor with a recipe is made again of what is kept anyway, and of nothing that has changed since."""

import torch

from truetune.model.fused_blocks import RMSNorm
from truetune.model.recomputed import Maker, Recipe, recipe_of, with_recipe


def made_again(tensor: torch.Tensor) -> torch.Tensor:
    recipe = recipe_of(tensor)
    return recipe.maker.again(recipe.keep())


def test_a_tensor_without_a_recipe_is_kept_itself() -> None:
    tensor = torch.randn(3)
    assert made_again(tensor) is tensor


def test_a_recipe_makes_the_tensor_again() -> None:
    base = torch.randn(3)
    tensor = with_recipe(base * 2, Recipe(Maker(lambda each: each * 2), (base,)))
    again = made_again(tensor)
    assert again is not tensor
    assert torch.equal(again, tensor)


def test_one_recipe_goes_on_with_another() -> None:
    base, other = torch.randn(3), torch.randn(3)
    first = Recipe(Maker(lambda each: each * 2), (base,))
    recipe = first.then(lambda doubled, more, nothing: doubled + more if nothing is None else doubled, other, None)
    assert torch.equal(recipe.maker.again(recipe.keep()), base * 2 + other)
    assert recipe.ingredients == (base, other, None)


def test_a_tensor_that_was_changed_is_kept_itself() -> None:
    base = torch.randn(3)
    tensor = with_recipe(base * 2, Recipe(Maker(lambda each: each * 2), (base,)))
    tensor.clamp_(0, 1)
    assert made_again(tensor) is tensor


def test_autograd_sees_a_change_of_what_a_norm_is_made_of() -> None:
    norm = RMSNorm(torch.nn.Parameter(torch.ones(4)), 1e-5, 0, is_wide=False)
    rows = torch.randn(2, 4, requires_grad=True) * 1.0
    ingredient = recipe_of(norm(rows)).ingredients[0]
    assert ingredient is not None
    before = ingredient._version
    rows.mul_(2)
    assert ingredient._version == before + 1


def test_all_that_ask_share_what_is_made_and_the_last_has_it_forgotten() -> None:
    made: list[torch.Tensor] = []

    def double(each: torch.Tensor) -> torch.Tensor:
        made.append(each * 2)
        return made[-1]

    root = Recipe(Maker(double), (torch.randn(3),))
    one, other = root.then(torch.neg), root.then(torch.abs)
    kept = [(each.maker, each.keep()) for each in (root, one, other)]
    found = [maker.again(tensors) for maker, tensors in kept]
    assert len(made) == 1
    assert found[0] is made[0]
    assert torch.equal(found[1], -made[0])
    assert torch.equal(found[2], made[0].abs())
    assert root.maker.made is None
    assert torch.equal(root.maker.again(root.ingredients), made[0])
    assert root.maker.made is None


def test_a_backward_pass_leaves_nothing_made() -> None:
    norm = RMSNorm(torch.nn.Parameter(torch.ones(4)), 1e-5, 0, is_wide=False)
    rows = norm(torch.randn(2, 4, requires_grad=True))
    recipe = recipe_of(rows)
    maker, tensors = recipe.maker, recipe.keep()
    recipe.keep()
    maker.again(tensors)
    assert maker.made is not None
    maker.again(tensors)
    assert maker.made is None
