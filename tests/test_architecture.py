"""Which module may import which; docs/architecture.md says the same."""

from scripts import architecture
from scripts.architecture import ROOMS, arrows, between_rooms, modules

ALLOWED = {
    ("top level", "s9"), ("s9", "netreview"),  # and the notebook imports both
    ("scripts", "top level"), ("scripts", "s9"), ("scripts", "netreview"),
}  # fmt: skip


def test_no_arrow_runs_back_up():
    """train.py on top, which is three lines, passes on to scripts."""
    assert arrows()["train"] == {"scripts.train"}
    found = modules()
    pairs = {
        (found[name][0], found[other][0]) for name, others in arrows().items() if name != "train" for other in others
    }
    assert {(here, there) for here, there in pairs if here != there} == ALLOWED
    assert between_rooms() == ALLOWED | {("top level", "scripts")}


def test_every_module_is_in_a_room_and_none_imports_itself_in_a_circle():
    assert {room for room, _ in modules().values()} == set(ROOMS)
    seen: dict[str, int] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in seen:
            for other in arrows_of[name]:
                visit(other, (*above, name))
            seen[name] = 1

    arrows_of = arrows()
    for name in arrows_of:
        visit(name, ())


def test_the_picture_shows_every_module(tmp_path):
    architecture.draw(tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    for name, (_, path) in modules().items():
        assert path.name == "__init__.py" or f">{name.rpartition('.')[2]}</text>" in drawn, name
    assert (architecture.ROOT / "docs" / "architecture.svg").exists()
