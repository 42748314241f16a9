"""Controls above a picture that is drawn anew when one of them is turned."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flashsvd.errors import FlashSVDError
from flashsvd.teaching.pictures import bundle, framed, redraw, shown, widget_or

if TYPE_CHECKING:
    import ipywidgets
    import plotly.graph_objects as go

Control = tuple[Sequence[Any], Any, bool]
"""Values, the one to start with, and whether they lie along a line."""
Drawn = tuple["go.Figure", str]
"""A figure, and what it shows in words."""


def slider(values: Sequence[Any], start: Any) -> Control:
    """A control that slides over values, such as `slider(range(1, 257), 64)`."""
    return list(values), start, True


def menu(values: Sequence[Any], start: Any = None) -> Control:
    """A control that lists values, such as `menu(["T4", "H100"])`; it starts at the first."""
    return list(values), values[0] if start is None else start, False


def turn(draw: Callable[..., Drawn], **controls: Control) -> None:
    """Draws `draw(**values)` and a control for each name, and draws it again whenever one is turned.

    `draw` gives (figure, words); the words stand under the controls, the picture below. Where the notebook is only
    read, the picture of the starting values stays. An error of the library's is shown in place of the words and keeps
    the last picture.

    >>> turn(lambda r: (None, f"rank {r}"), r=slider([1, 2], 3))
    Traceback (most recent call last):
    ...
    flashsvd.errors.FlashSVDError: r starts at 3, which is not one of its values
    """
    for name, (values, start, _) in controls.items():
        if start not in values:
            raise FlashSVDError(f"{name} starts at {start!r}, which is not one of its values")
    figure, words = draw(**{name: start for name, (_, start, _) in controls.items()})

    def box() -> ipywidgets.Widget:
        import ipywidgets

        made = {name: _control(name, *control) for name, control in controls.items()}
        line = ipywidgets.HTML(words)

        def turned(_: Any) -> None:
            try:
                figure, line.value = draw(**{name: control.value for name, control in made.items()})
            except FlashSVDError as error:
                line.value = html.escape(str(error))
                return
            if handle is not None:
                redraw(handle, figure, line.value)

        for control in made.values():
            control.observe(turned, "value")
        return ipywidgets.VBox([*made.values(), line])

    named = ", ".join(
        f"<b>{html.escape(name.replace('_', ' '))}</b> "
        f"({html.escape(str(values[0]))} to {html.escape(str(values[-1]))})"
        for name, (values, _, _) in controls.items()
    )
    widget_or(box, framed("Turn", f"Run this cell to turn {named}. {words}"))
    # JupyterLab makes all of a cell's outputs anew when the first one changes: a slider would slip out of the hand.
    handle = shown(bundle(figure, words))


def _control(name: str, values: Sequence[Any], start: Any, slides: bool) -> ipywidgets.Widget:
    """A slider or a list, both of one width: a list without one is as wide as the page."""
    import ipywidgets

    kind = ipywidgets.SelectionSlider if slides else ipywidgets.Dropdown
    return kind(
        options=[(str(value), value) for value in values],
        value=start,
        description=name.replace("_", " "),
        style={"description_width": "initial"},
        layout={"width": "26em"},
    )
