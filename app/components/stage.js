// A slide fills the window at 16:9, and the keys of a presenter's clicker turn it.

const WIDTH = 1280;
const HEIGHT = 720;
const MOVES = {
  ArrowRight: "next", PageDown: "next", " ": "next",
  ArrowLeft: "back", PageUp: "back",
  Home: "first", End: "last", Escape: "leave", r: "run",
};

// The page draws this part again and again: what listened before stops first, or a key would turn two slides.
let stop = () => {};

export default function ({ data, setTriggerValue }) {
  stop();
  const root = document.documentElement;
  const fit = () => {
    const scale = Math.min(window.innerWidth / WIDTH, window.innerHeight / HEIGHT);
    root.style.setProperty("--fs-stage", data.on ? scale : 1);
  };
  const turn = (event) => {
    const busy = event.target.closest?.("input, textarea, select, [contenteditable], [role=slider]");
    const move = MOVES[event.key];
    if (!move || busy || event.ctrlKey || event.metaKey || event.altKey) return;
    // A focused button takes the space bar itself.
    if (event.key === " " && event.target.closest?.("button")) return;
    event.preventDefault();
    setTriggerValue("move", move);
  };
  fit();
  window.addEventListener("resize", fit);
  window.addEventListener("keydown", turn);
  stop = () => {
    window.removeEventListener("resize", fit);
    window.removeEventListener("keydown", turn);
    root.style.removeProperty("--fs-stage");
  };
  return stop;
}
