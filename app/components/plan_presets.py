"""Plans by a rule, at one press; undo and redo beside them."""

from __future__ import annotations

import streamlit as st

from app import session
from app.components import front_menu
from app.components.budget import budget
from app.evidence import Sigmas
from app.state import Settings
from flashsvd import allocate
from flashsvd.allocate.within import least_cut
from flashsvd.ranks import RankPlan

_NO_SIGMAS = "Needs the singular values: compute them below."
_SENSITIVITY = (
    "As many parameters as the plan has now, given where they hold most: a head or projection whose singular values "
    "fall slowly loses more with every rank that is cut. Measured are the singular values; no text is run. For "
    "the loss on text, choose “least expected KL” under budget…."
)


def presets(plan: RankPlan, settings: Settings, sigmas: Sigmas, parameters: int | None) -> None:
    """One button per rule; undo and redo beside them. parameters: of the whole model, if known."""
    shape = plan.shape
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="presets"):
        st.html('<div class="fs-title">What can I cut?</div>', width="content")
        st.button(
            "uniform",
            key="preset_uniform",
            help=f"The same keep everywhere: the sidebar's {100 * settings.keep:g} %.",
            on_click=lambda: session.update(plan=None),
        )
        for share in (90, 95, 99):
            st.button(
                f"energy {share} %" if share == 90 else f"{share} %",
                key=f"preset_energy_{share}",
                disabled=not sigmas,
                help="The smallest rank of each unit that holds this share of its squared singular values."
                if sigmas
                else _NO_SIGMAS,
                on_click=session.try_plan,
                args=(lambda share=share: allocate.energy(shape, sigmas, share / 100),),
            )
        st.button(
            "sensitivity",
            key="preset_sensitivity",
            disabled=not sigmas,
            help=_SENSITIVITY if sigmas else _NO_SIGMAS,
            on_click=session.try_plan,
            args=(lambda: _as_large(plan, sigmas),),
        )
        budget(shape, settings, sigmas, parameters)
        front_menu.front_menu(settings)
        with st.popover("ladder"):
            st.caption("The ranks that the FlashSVD paper reports for BERT-base, scaled to this model.")
            for rung in allocate.LADDER:
                st.button(
                    f"{rung.cut} cut: {rung.head}, {rung.feed_forward}, {rung.output}",
                    key=f"preset_ladder_{rung.head}",
                    width="stretch",
                    on_click=session.try_plan,
                    args=(lambda rung=rung: allocate.ladder(shape, rung),),
                )
        st.button(
            "all dense", key="preset_dense", on_click=session.try_plan, args=(lambda: RankPlan.dense(shape),)
        )
        st.space("stretch")
        st.button("↶", key="undo", help="Undo", disabled=not session.can("undo"), on_click=session.undo)
        st.button("↷", key="redo", help="Redo", disabled=not session.can("redo"), on_click=session.redo)


def _as_large(plan: RankPlan, sigmas: Sigmas) -> RankPlan:
    return least_cut(
        plan.shape, sigmas, allocate.Budget("parameters", plan.kept_parameters), allocate.Costs.parameters()
    )
