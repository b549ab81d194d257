"""The figures that docs/scaling.md tells of models that are not here are those of the plan."""

import re
from pathlib import Path

import pytest

import truetune
from truetune.figures import byte_size

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in re.findall(r"^\| (?:8B|70B) \|.*\|$", PAGE, re.MULTILINE)
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two models' configurations, as the page's own lines write them."""
    folder = tmp_path_factory.mktemp("shapes")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, {})
    return folder


def test_all_rows_of_the_table_are_held_to_the_plan() -> None:
    assert len(ROWS) == PAGE.count("| 8B |") + PAGE.count("| 70B |") > 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(filter(None, row[:3])))
def test_a_row_of_the_table_is_what_the_plan_says(row: tuple[str, ...], shapes: Path) -> None:
    size, setting, device, strategy, peak, fits = row
    settings = {name: value == "true" or value for name, value in re.findall(r"(\w+)=(\w+)", setting)}
    found = truetune.plan(model=str(shapes / f"llama-{size.lower()}"), device=device, **settings).as_json()
    memory, chosen = found["memory"], {each["name"]: each["value"] for each in found["settings"]}
    assert " of ".join(byte_size(memory[name]) for name in ("peak_bytes", "free_bytes")) == peak
    assert chosen.get("training.strategy", "") == strategy
    assert found["fits"] is (fits == "yes")
    for name, value in re.findall(r"`(\w+)=(\w+)`", fits):
        changed = {
            key.partition(".")[2]: str(told).lower() for each in found["changes"] for key, told in changes(each)
        }
        assert changed[name] == value


def changes(change: dict[str, object]) -> list[tuple[str, object]]:
    settings = change["settings"]
    assert isinstance(settings, dict)
    return [*settings.items()]
