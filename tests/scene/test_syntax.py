import pytest
from pydantic import ValidationError

from hstvg.scene.syntax import Scene

BOX = [0.1, 0.1, 0.4, 0.4]
OBJECT = {
    "id": 0,
    "colour": "red",
    "shape": "circle",
    "motion": "still",
    "keyframes": [{"t": 0.0, "box": BOX}, {"t": 1.0, "box": BOX}],
}


def with_object(**changes):
    return {"objects": [OBJECT | changes]}


def test_json_round_trip():
    scene = Scene.model_validate({"objects": [OBJECT, OBJECT | {"id": 1}], "seed": 7})
    assert Scene.model_validate_json(scene.model_dump_json()) == scene


@pytest.mark.parametrize(
    "broken",
    [
        {"objects": []},
        {"objects": [OBJECT | {"id": n} for n in range(4)]},
        {"objects": [OBJECT, OBJECT]},
        {"objects": [OBJECT], "weather": "rain"},
        {"objects": [OBJECT], "style": "cubist"},
        {"objects": [OBJECT], "duration_s": 0.0},
        with_object(colour="purple"),
        with_object(keyframes=OBJECT["keyframes"][:1]),
        with_object(keyframes=OBJECT["keyframes"][::-1]),
        with_object(keyframes=[{"t": 0.0, "box": BOX}, {"t": 1.5, "box": BOX}]),
        with_object(keyframes=[{"t": t, "box": [0.4, 0.1, 0.1, 0.4]} for t in (0.0, 1.0)]),
        with_object(keyframes=[{"t": t, "box": [0.1, 0.1, 0.4, float("nan")]} for t in (0.0, 1.0)]),
    ],
)
def test_what_cannot_be_rendered_is_refused(broken):
    with pytest.raises(ValidationError):
        Scene.model_validate(broken)


def test_a_scene_cannot_be_changed():
    scene = Scene.model_validate({"objects": [OBJECT]})
    with pytest.raises(ValidationError):
        scene.style = "warm"
