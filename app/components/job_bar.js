// How far a job is, as the server tells it by a socket of its own. A run of the page a second for that cost the browser
// 0.15 s of a core each, and a request four times a second as much, which the job then lacked.

// How long the page has to draw what is new, before it is asked again.
const PATIENCE_MS = 4000;
const AGAIN_MS = 1000;

const stops = new WeakMap();

export default function ({ parentElement, data, setTriggerValue }) {
  stops.get(parentElement)?.();
  let socket = null;
  let timer = 0;
  let called = 0;
  const stop = () => {
    clearTimeout(timer);
    if (socket) socket.onclose = socket.onmessage = null;
    socket?.close();
  };
  stops.set(parentElement, stop);

  const news = () => {
    if (Date.now() - called < PATIENCE_MS) return;
    called = Date.now();
    setTriggerValue("news", called);
  };
  const listen = () => {
    socket = new WebSocket(address(data.id));
    socket.onmessage = (message) => {
      const now = JSON.parse(message.data);
      draw(parentElement, now);
      if (!now.active || (data.follow && now.parts !== data.parts)) news();
    };
    // Where nobody answers, and where the job is over, the page knows more.
    socket.onclose = () => {
      news();
      timer = setTimeout(listen, AGAIN_MS);
    };
  };
  draw(parentElement, data);
  listen();
  return stop;
}

function address(id) {
  const url = new URL(`flashsvd/jobs/${id}`, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  return url;
}

function draw(parent, { stage, time, share }) {
  say(parent.querySelector(".stage"), stage);
  say(parent.querySelector(".time"), time);
  const bar = parent.querySelector("[role=progressbar]");
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  bar.firstElementChild.style.transform = `scaleX(${share})`;
}

function say(element, words) {
  if (element.textContent === words) return;
  element.textContent = words;
  element.title = words;
}
