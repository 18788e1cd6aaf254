// The models.
const cards = new Map();
const fact = (label) => {
  const dt = el("dt", {}, label), dd = el("dd");
  return { dt, dd, box: el("div", {}, dt, dd) };
};
const makeCard = (id) => {
  const card = {
    title: el("h3"), phase: el("span", { class: "phase" }), names: el("p", { class: "names" }),
    doing: el("p", { class: "doing" }), bar: el("progress", { class: "bar", max: "1" }), stages: el("div", { class: "stages", role: "img" }),
    gone: el("span"), left: el("span"), cause: el("pre", { class: "cause", hidden: "", tabindex: "0" }),
    waiting: fact("Waiting"), flight: fact("Answering"), replicas: fact("Replicas"), time: fact("For"),
    wake: el("button", { type: "button" }, "Wake"), rest: el("button", { type: "button", class: "plain" }, "Put to sleep"),
    swap: el("button", { type: "button", class: "plain" }, "Switch to"), said: el("p", { class: "said", role: "alert" }),
    summary: el("summary"), output: el("pre", { tabindex: "0", "aria-label": "The engine's output" }), busy: null,
  };
  card.details = el("details", { class: "output", hidden: "" }, card.summary, card.output);
  card.root = el("article", {},
    el("header", {}, card.title, card.phase, card.names), card.doing,
    el("div", { class: "slot" }, card.bar, card.stages, el("p", { class: "times" }, card.gone, card.left), card.cause),
    el("dl", { class: "facts" }, card.waiting.box, card.flight.box, card.replicas.box, card.time.box),
    el("p", { class: "acts" }, card.wake, card.rest, card.swap, card.said), card.details);
  const target = () => status.targets.find((one) => keyOf(one) === id);
  card.wake.addEventListener("click", () => operate(card, target(), "operations/start?wait=false"));
  card.rest.addEventListener("click", async () => {
    if (await confirmed("Put " + nameOf(target()) + " to sleep?", stopWords(target()), "Put to sleep")) {
      operate(card, target(), "operations/stop");
    }
  });
  card.swap.addEventListener("click", async () => {
    if (await confirmed("Switch to " + nameOf(target()) + "?", switchWords(target()), "Switch")) {
      operate(card, target(), "models/switch", { wake: true });
    }
  });
  card.details.addEventListener("toggle", () => { if (card.details.open) readOutput(id, card) });
  return card;
};
const stopWords = (target) => [
  target.in_flight ? many(target.in_flight, "answer is", "answers are") + " under way; each ends first." : "Nobody is being answered.",
  target.waiting ? many(target.waiting, "request waits", "requests wait") + " for it, and what waits may wake it again." : "",
  "Its GPUs are free then, and the next request wakes it.",
].filter(Boolean).join(" ");
const switchWords = (target) => {
  const others = status.targets.filter((other) => other !== target && ["ready", "waking"].includes(other.phase) &&
    (isDefault(other) || (other.group !== null && other.group === target.group)));
  return "It is woken, and requests that name no model go to it. " + (others.length ?
    others.map(nameOf).join(", ") + (others.length === 1 ? " goes" : " go") + " to sleep once the last answer has ended; none is cut off." :
    "No other model has to sleep for it.");
};
const doing = (target) => {
  const start = target.start;
  switch (target.phase) {
    case "unknown": return target.cause ? "How it is, is not known: " + sentence(target.cause) : "How it is, is not known yet.";
    case "asleep": return "Its GPUs are free. A request wakes it.";
    case "queued": return sentence(target.cause ?? "it is its turn now");
    case "waking": {
      const words = start === null ? "It is being started." :
        sentence(STAGES[start.stage] ?? start.stage).slice(0, -1) + (start.detail ? " (" + start.detail + ")" : "") + ".";
      return target.cause ? words + " The last trouble was: " + sentence(target.cause) : words;
    }
    case "ready": return target.in_flight ? "In use. " + (target.scaling ? sentence(target.scaling) : "") :
      target.sleeps_in_seconds === null ? "Unused, and stays awake." : "Unused: it is put to sleep unless a request comes.";
    case "draining": return target.in_flight ? "It sleeps once " + many(target.in_flight, "answer has", "answers have") + " ended." :
      "Its replicas are ending.";
    default: return "It could not be woken. A request after a pause tries again, and so does Wake.";
  }
};
// One slot of a constant height: how far a start is, how long it stays awake yet, or what the last start took.
const showTime = (card, target, start, past) => {
  const idle = target.phase === "ready" && target.sleeps_in_seconds !== null && target.idle_seconds !== null;
  const last = target.phase === "asleep" && target.last_start?.outcome === "ready" ? target.last_start : null;
  show(card.bar, start !== null || idle);
  show(card.stages, last !== null);
  let before = "", after = "";
  if (start !== null) {
    const elapsed = start.elapsed_seconds + past, left = start.eta_seconds === null ? null : Math.max(0, start.eta_seconds - past);
    if (left === null) card.bar.removeAttribute("value");
    else card.bar.value = elapsed / Math.max(elapsed + left, 0.001);
    before = duration(elapsed) + " so far";
    after = left === null ? "" : left ? about(left) + " left" : "any moment";
  } else if (idle) {
    const unused = target.idle_seconds + past, left = Math.max(0, target.sleeps_in_seconds - past);
    card.bar.value = left / Math.max(unused + left, 0.001);
    before = "unused for " + duration(unused);
    after = "sleeps in " + duration(left);
  } else if (last !== null) {
    before = "last start";
    after = took(last.total_seconds);
    if (card.last !== last) {
      card.last = last;
      fillStages(card.stages, last);
    }
  }
  set(card.bar, "aria-label", start !== null ? "How far the start is" : "How long it stays awake yet");
  put(card.gone, before);
  put(card.left, after);
};
const fillStages = (bar, start) => {
  const stages = Object.entries(start.stages);
  set(bar, "aria-label", stages.map(([stage, seconds]) => (STAGES[stage] ?? stage) + " " + took(seconds)).join(", "));
  bar.replaceChildren(...stages.map(([stage, seconds]) => {
    const part = el("span", { title: (STAGES[stage] ?? stage) + ": " + took(seconds) });
    part.style.setProperty("--of", "var(--" + (stage in STAGES ? stage : "requested") + ")");
    part.style.flexGrow = seconds;
    return part;
  }));
};
const showCard = (card, target) => {
  const past = gone(), start = target.phase === "waking" ? target.start : null;
  set(card.root, "data-phase", target.phase);
  set(card.root, "aria-label", nameOf(target));
  put(card.title, nameOf(target));
  set(card.title, "title", nameOf(target));
  put(card.phase, PHASES[target.phase] ?? target.phase);
  const names = [
    isDefault(target) ? "default" : "", nameOf(target) === keyOf(target) ? "" : keyOf(target),
    target.served_names.length > 1 ? "also " + target.served_names.slice(1).join(", ") : "",
    target.group === null ? "" : "group " + target.group, target.endpoints.join(", "),
  ].filter(Boolean).join(" · ");
  put(card.names, names);
  set(card.names, "title", names);
  const words = doing(target);
  put(card.doing, words);
  set(card.doing, "title", words);
  const failed = target.phase === "failed" && target.cause !== null;
  show(card.doing, !failed);
  showTime(card, target, start, past);
  show(card.cause, failed);
  put(card.cause, failed ? target.cause : "");
  put(card.waiting.dd, String(target.waiting));
  put(card.flight.dd, String(target.in_flight));
  put(card.replicas.dd, target.ready_replicas === null ? "–" :
    target.ready_replicas === target.desired_replicas ? String(target.ready_replicas) : target.ready_replicas + " of " + (target.desired_replicas ?? "?"));
  put(card.time.dt, { asleep: "Asleep for", ready: "Awake for", waking: "Waking for", queued: "In line for" }[target.phase] ?? "For");
  put(card.time.dd, target.phase_seconds === null ? "–" : duration(target.phase_seconds + past));
  const wakes = ["asleep", "failed", "draining"].includes(target.phase), sleepsNow = ["ready", "waking", "queued"].includes(target.phase);
  if (card.busy !== null && card.busy !== target.phase) card.busy = null;
  card.wake.disabled = card.rest.disabled = card.swap.disabled = card.busy !== null;
  show(card.wake, wakes);
  show(card.rest, sleepsNow);
  show(card.swap, status.targets.length > 1 && target.model !== null && !isDefault(target));
};
const operate = async (card, target, path, body = {}) => {
  const id = idOf(target);
  put(card.said, "");
  card.busy = target.phase;
  render();
  try {
    const answer = await ask(path, { method: "POST", body: JSON.stringify(id === null ? body : { ...body, model_id: id }) });
    if (answer.status === 401) wantKey(await complaint(answer));
    else if (!answer.ok) put(card.said, await complaint(answer));
  } catch {
    put(card.said, NO_ANSWER);
  }
  card.busy = null;
  render();
};
const confirmed = (title, words, yes) => new Promise((decided) => {
  const dialog = at("ask");
  put(at("ask-title"), title);
  put(at("ask-words"), words);
  put(at("ask-yes"), yes);
  dialog.returnValue = "";
  dialog.addEventListener("close", () => decided(dialog.returnValue === "yes"), { once: true });
  dialog.showModal();
  at("ask-no").focus();
});
