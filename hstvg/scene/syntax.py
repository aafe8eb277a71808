"""Dynamic Scene Syntax (DSS): the program of which a clip is the output.

A renderer needs nothing but a `Scene`. The models are closed: an unknown key, a word outside the
vocabulary or a number outside its range is refused, so what parses can be rendered.
`scene.model_dump_json()` and `Scene.model_validate_json(text)` are each other's inverse.

World    coordinates are fractions of the frame, x right, y down; at the first moment of the scene
         the world and the screen coincide. A camera that pans right moves the world left on screen.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Colour = Literal["red", "green", "blue", "yellow", "cyan", "magenta", "orange", "white"]
Shape = Literal["circle", "square", "triangle"]
Motion = Literal[
    "left",
    "right",
    "up",
    "down",
    "up and to the left",
    "up and to the right",
    "down and to the left",
    "down and to the right",
    "still",
]
Speed = Literal["slowly", "quickly"]
Camera = Literal["still", "left", "right", "up", "down"]
Style = Literal["plain", "stripes", "blur", "posterise", "noise", "invert", "warm", "cool"]

MAX_OBJECTS = 3


class Closed(BaseModel):
    """A frozen record that refuses unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Keyframe(Closed):
    """Where an object is at one moment; between two keyframes its box moves linearly."""

    t: Annotated[float, Field(ge=0.0, le=1.0)]
    """Fraction of the duration of the scene."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in world coordinates; may lie outside [0, 1] when the camera moves."""

    @model_validator(mode="after")
    def _has_area(self) -> "Keyframe":
        x0, y0, x1, y1 = self.box
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"a box is x0 < x1 and y0 < y1, not {self.box}")
        return self


class SceneObject(Closed):
    """One shape: what it looks like, the words for its motion, and the motion itself."""

    id: Annotated[int, Field(ge=0)]
    colour: Colour
    shape: Shape
    motion: Motion
    """The word for the path of the keyframes, in the world (not on a moving screen)."""
    speed: Speed | None = None
    """None is the ordinary speed, which a caption does not mention."""
    keyframes: Annotated[tuple[Keyframe, ...], Field(min_length=2)]
    z_order: int = 0
    """Higher is nearer to the viewer."""

    @model_validator(mode="after")
    def _moves_forward_in_time(self) -> "SceneObject":
        if any(a.t >= b.t for a, b in pairwise(self.keyframes)):
            raise ValueError(f"the keyframe times of object {self.id} do not increase")
        return self


class Scene(Closed):
    """All there is to know about a clip."""

    objects: Annotated[tuple[SceneObject, ...], Field(min_length=1, max_length=MAX_OBJECTS)]
    camera: Camera = "still"
    camera_speed: Annotated[float, Field(ge=0.0)] = 0.0
    """Frame fractions per second along the direction of the camera; 0 for a still camera."""
    style: Style = "plain"
    duration_s: Annotated[float, Field(gt=0.0)] = 2.0
    seed: Annotated[int, Field(ge=0)] = 0
    """Draws the background texture and the grain of the noise style."""

    @model_validator(mode="after")
    def _ids_are_distinct(self) -> "Scene":
        ids = [thing.id for thing in self.objects]
        if len(set(ids)) < len(ids):
            raise ValueError(f"object ids repeat: {ids}")
        return self
