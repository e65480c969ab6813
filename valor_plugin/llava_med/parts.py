"""The parts of a LLaVA model that can train or be frozen."""

PARTS = ("tower", "projector", "language")

_MARKS = {
    "vision_tower": "tower",
    "multi_modal_projector": "projector",
    "language_model": "language",
    "lm_head": "language",
}


def part_of(parameter: str) -> str:
    """The part that a parameter of `LlavaForConditionalGeneration` belongs to, by its name.

    >>> part_of("model.multi_modal_projector.linear_1.weight")
    'projector'

    Raises:
        ValueError: for a name outside of all parts, so that a new kind of model is never trained
            by accident.
    """
    for mark, part in _MARKS.items():
        if mark in parameter.split("."):
            return part
    raise ValueError(
        f"parameter {parameter!r} belongs to none of the parts {', '.join(PARTS)}: "
        "only LLaVA models can be trained by parts"
    )
