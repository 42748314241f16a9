"""What the notebooks share: a start on any machine, boxes to guess in, checks, exercises, sliders, pictures.

Nothing of a lesson's subject is here: numbers come from the library, pictures from `flashsvd.figures`.

>>> from flashsvd.teaching import check
>>> check("two", 1 + 1, 2)
✓ two: equal
"""

from __future__ import annotations

from flashsvd.teaching.begin import begin
from flashsvd.teaching.boxes import choose, predict
from flashsvd.teaching.checks import check, exercise
from flashsvd.teaching.peaks import peak_bytes
from flashsvd.teaching.pictures import image, show
from flashsvd.teaching.shipped import shipped
from flashsvd.teaching.turning import menu, slider, turn

__all__ = [
    "begin",
    "check",
    "choose",
    "exercise",
    "image",
    "menu",
    "peak_bytes",
    "predict",
    "shipped",
    "show",
    "slider",
    "turn",
]
