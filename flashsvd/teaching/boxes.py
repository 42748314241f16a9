"""Boxes to guess in: the answer is shown after a guess, and folded away where the notebook is only read."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flashsvd.errors import InputError
from flashsvd.teaching.pictures import framed, widget_or

if TYPE_CHECKING:
    import ipywidgets

_COUNTS = {"": 1.0, "x": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}


def predict(question: str, answer: float, *, unit: str = "", within: float = 0.05, why: str = "") -> None:
    """Asks for a number: the reader types a guess and sees the answer beside it, and why.

    A guess within the share `within` of the answer counts as right. `2.4M`, `48 KiB`, `1/3` and `30 %` are numbers too.
    `question` and `why` may hold HTML; the answer is worked out by the caller, from the library.
    """
    said = f"is <b>{_number(answer)}{_unit(unit)}</b>. {why}"

    def box() -> ipywidgets.Widget:
        import ipywidgets

        field = ipywidgets.Text(
            placeholder="a number",
            layout={"width": "11em"},
            description="",
            tooltip="Your guess; 2.4M, 48 KiB, 1/3 and 30 % are numbers too",
        )
        button = ipywidgets.Button(
            description="Guess", layout={"width": "6em"}, tooltip="Shows the answer, once you have guessed"
        )
        words = ipywidgets.HTML()

        def answered(_: Any) -> None:
            words.value = judged(field.value, answer, unit, within, said)

        button.on_click(answered)
        field.continuous_update = False
        field.observe(answered, "value")
        unit_label = [ipywidgets.HTML(html.escape(unit))] if unit else []
        return _asked(question, ipywidgets.HBox([field, *unit_label, button]), words)

    widget_or(box, framed("Predict", question, f"It {said}"))


def choose(question: str, options: Sequence[str], answer: str, *, why: str = "") -> None:
    """Asks for one of several: a click shows whether it is the right one, and why.

    Raises InputError where `answer` is not one of `options`.
    """
    if answer not in options:
        raise InputError(f"answer must be one of {', '.join(options)}, got {answer!r}")

    def box() -> ipywidgets.Widget:
        import ipywidgets

        buttons = [
            ipywidgets.Button(description=option, tooltip="Your guess", layout={"width": "auto"})
            for option in options
        ]
        words = ipywidgets.HTML()

        def answered(button: ipywidgets.Button) -> None:
            words.value = chosen(button.description, answer, why)

        for button in buttons:
            button.on_click(answered)
        return _asked(question, ipywidgets.HBox(buttons, layout={"flex_flow": "row wrap"}), words)

    listed = " · ".join(html.escape(option) for option in options)
    widget_or(box, framed("Predict", f"{question}<br>{listed}", f"<b>{html.escape(answer)}</b>. {why}"))


def chosen(option: str, answer: str, why: str) -> str:
    """What stands under the buttons, in HTML, once a reader has chosen `option`.

    >>> chosen("it grows", "it stays", "Both grow alike.")
    'Not “it grows” but <b>“it stays”</b>. Both grow alike.'
    """
    said = f"<b>“{html.escape(answer)}”</b>. {why}"
    return f"Right: {said}" if option == answer else f"Not “{html.escape(option)}” but {said}"


def judged(text: str, answer: float, unit: str, within: float, said: str) -> str:
    """What stands under the box, in HTML, once a reader has typed `text`; `said` is the answer.

    >>> judged("0.2 GiB", 192.0, "MiB", 0.05, "is 192 MiB.")
    'You said 204.80 MiB: it is 192 MiB.'
    >>> judged("", 192.0, "MiB", 0.05, "is 192 MiB.")
    'Type a guess first: any number shows the answer.'
    """
    if not text.strip():
        return "Type a guess first: any number shows the answer."
    try:
        guess = read_number(text, unit)
    except InputError as error:
        return html.escape(str(error))
    # Nothing to be near to where the answer is 0.
    off = abs(guess - answer) / abs(answer) if answer else abs(guess)
    return ("Right" if off <= within else f"You said {_number(guess)}{_unit(unit)}") + f": it {said}"


def read_number(text: str, unit: str = "") -> float:
    """A number as people write it, in `unit`; a text may name the unit, or another of its kind.

    >>> read_number("2.4M"), read_number("48 KiB"), read_number("1/4"), read_number("30 %"), read_number("1,024")
    (2400000.0, 49152.0, 0.25, 0.3, 1024.0)
    >>> read_number("96", "MiB"), read_number("96 MiB", "MiB"), read_number("0.5 GiB", "MiB"), read_number("2 %", "%")
    (96.0, 96.0, 512.0, 2.0)

    Raises InputError for anything else.
    """
    own = unit.lower()
    endings = _COUNTS | {own: 1.0}
    if own in _BYTES or not own:
        endings |= {name: size / _BYTES.get(own, 1.0) for name, size in _BYTES.items()}
    if not own:
        endings["%"] = 0.01
    found = re.fullmatch(
        r"\s*([-+]?[\d.,_]+(?:e[-+]?\d+)?)\s*(?:/\s*([\d.]+))?\s*([^\d\s]*)\s*",
        text.replace("×", "x").lower(),
    )
    try:
        if found is None:
            raise ValueError
        value = float(found[1].replace(",", "").replace("_", "")) / float(found[2] or 1)
        return value * endings[found[3]]
    except (ValueError, ZeroDivisionError, KeyError):
        raise InputError(
            f"expected a number such as 384, 2.4M, 48 KiB or 1/3, got {text.strip()!r}"
        ) from None


def _asked(question: str, asked: ipywidgets.Widget, words: ipywidgets.Widget) -> ipywidgets.Widget:
    import ipywidgets

    return ipywidgets.VBox([ipywidgets.HTML(framed("Predict", question)), asked, words])


def _number(value: float) -> str:
    """
    >>> _number(384.0), _number(1234567.0), _number(0.12345), _number(1.5e-7)
    ('384', '1,234,567', '0.1235', '1.5e-07')
    """
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4g}"


def _unit(unit: str) -> str:
    return f" {html.escape(unit)}" if unit else ""
