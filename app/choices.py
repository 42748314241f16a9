"""What a page lets a person choose beside the settings of all pages: kept per tab, and in the page's address.

>>> from app import choices
>>> gpu = choices.chosen("gpu", ("A100", "H200"), "H200")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

_PREFIX = "p."
_MOST = 40
_LONGEST = 200


@dataclass(frozen=True)
class Choices:
    """Choices by name: a tab's, or those that a step of a talk was saved with."""

    values: Mapping[str, str]

    def chosen(self, name: str, options: Sequence[str], default: str) -> str:
        """What was chosen under a name that no other page uses; the default where that is none of the options."""
        value = self.values.get(name, default)
        return value if value in options else default

    def text(self, name: str, default: str = "") -> str:
        """Free text that was given under a name."""
        return self.values.get(name, default)


def here() -> Choices:
    """This tab's, as they are now."""
    return Choices(_kept())


def saved(query: Mapping[str, str]) -> Choices:
    """Those of a query, such as a step's; unlike an address's they may be long."""
    return Choices(_named(query))


def chosen(name: str, options: Sequence[str], default: str) -> str:
    """`Choices.chosen` of this tab."""
    return here().chosen(name, options, default)


def text(name: str, default: str = "") -> str:
    """`Choices.text` of this tab."""
    return here().text(name, default)


def choose(name: str, value: str, default: str = "") -> None:
    """Keeps a choice; a default is not kept, so that addresses stay short."""
    if value == default:
        _kept().pop(name, None)
    else:
        _kept()[name] = value


def keep(name: str, widget: str, default: str = "") -> None:
    """`choose` from a widget's key, for its on_change; nothing where its page has gone (`app.echo.heard`)."""
    if widget in st.session_state:
        value: Any = st.session_state[widget]
        choose(name, default if value is None else str(value), default)


def to_query(longest: int = _LONGEST) -> dict[str, str]:
    """The address's parameters, in order of their names; what is too long for an address stays in the tab."""
    return {f"{_PREFIX}{name}": value for name, value in sorted(_kept().items()) if len(value) <= longest}


def restore(query: Mapping[str, str]) -> None:
    """Reads `to_query`. Whether a value is one of the options is for `chosen` to say."""
    found = {name: value[:_LONGEST] for name, value in _named(query).items()}
    st.session_state["choices"] = dict(list(found.items())[:_MOST])


def _named(query: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(_PREFIX): value
        for name, value in query.items()
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX).isidentifier()
    }


def _kept() -> dict[str, str]:
    kept: dict[str, str] = st.session_state.setdefault("choices", {})
    return kept
