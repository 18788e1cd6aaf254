"use strict";
{
  // Whatever is shown goes in as text: nothing here makes HTML of a string.
  const at = (id) => document.getElementById(id);
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text };
  const show = (node, is) => { if (node.hidden === is) node.hidden = !is };
  const set = (node, name, value) => { if (node.getAttribute(name) !== value) node.setAttribute(name, value) };
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

  // Words: as the proxy has them elsewhere.
  const PHASES = { unknown: "Not known", asleep: "Asleep", queued: "In line", waking: "Waking", ready: "Ready",
    draining: "Going to sleep", failed: "Failed" };
  const STAGES = { requested: "waiting for a replica", scheduling: "waiting for a node", pulling: "pulling the image",
    creating: "creating the container", starting: "starting the engine", loading: "loading the model",
    listing: "waiting for the model to be listed", first_token: "waiting for the first token" };
  const duration = (seconds) => {
    const all = Math.max(0, Math.round(seconds)), minutes = Math.floor(all / 60), rest = all % 60;
    if (minutes < 1) return rest + "s";
    if (minutes < 60) return minutes + "m" + (rest ? rest + "s" : "");
    const hours = Math.floor(minutes / 60);
    if (hours < 48) return hours + "h" + (minutes % 60 ? (minutes % 60) + "m" : "");
    return Math.floor(hours / 24) + "d" + (hours % 24 ? (hours % 24) + "h" : "");
  };
  const about = (seconds) => {
    const grain = seconds <= 10 ? 1 : seconds <= 60 ? 5 : seconds <= 600 ? 10 : 60;
    return "about " + duration(Math.max(1, Math.ceil(seconds / grain) * grain));
  };
  const took = (seconds) => seconds < 10 ? seconds.toFixed(1) + "s" : duration(seconds);
  const sentence = (words) => words && words[0].toUpperCase() + words.slice(1) + (/[.!?…]$/.test(words) ? "" : ".");
  const many = (count, one, several) => count === 1 ? "1 " + one : count + " " + several;

  // Asking the proxy.
  const KEPT = "vllm-chill-key";
  let key = sessionStorage.getItem(KEPT);
  const ask = (path, options = {}) => {
    const headers = { ...options.headers, ...(key ? { Authorization: "Bearer " + key } : {}) };
    return fetch(path, { cache: "no-store", redirect: "error", ...options, headers });
  };
  const complaint = async (answer) => {
    try {
      return sentence((await answer.json()).error.message);
    } catch {
      return "The proxy answered with status " + answer.status + ".";
    }
  };
  const NO_ANSWER = "The proxy does not answer at the moment. Nothing was changed, as far as can be told.";

  // Who looks.
  const wantKey = (why) => {
    put(at("sign-in-why"), why);
    show(at("sign-in"), true);
    at("key").focus();
  };
  at("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    key = at("key").value.trim();
    sessionStorage.setItem(KEPT, key);
    at("key").value = "";
    show(at("sign-in"), false);
    show(at("sign-out"), true);
    follow();
  });
  at("sign-out").addEventListener("click", () => {
    sessionStorage.removeItem(KEPT);
    location.reload();
  });
  show(at("sign-out"), key !== null);

  // The state: what was told last, and when. Times in it go on by themselves.
  let status = null, heard = 0;
  const gone = () => (performance.now() - heard) / 1000;
  const keyOf = (target) => target.model ?? target.target;
  const nameOf = (target) => target.served_names[0] ?? target.model ?? target.target;
  const idOf = (target) => {
    if (target.model === null) return null;
    const others = status.targets.filter((other) => other !== target);
    const names = [...target.served_names, target.model];
    return names.find((name) => !others.some((other) => other.served_names.includes(name))) ?? target.model;
  };
  const isDefault = (target) => status.default_model !== null && (target.model === status.default_model ||
    target.served_names.includes(status.default_model));

  // The feed.
  let following = null, hiddenTimer = null;
  const link = (state, words) => {
    set(at("link"), "data-state", state);
    put(at("link-words"), words);
  };
  const events = async function* (body, alive) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      text += value;
      for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
        const data = text.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  };
  const follow = async () => {
    following?.abort();
    const mine = following = new AbortController();
    for (let pause = 500; !mine.signal.aborted; pause = Math.min(pause * 2, 5000)) {
      let silence = null;
      const once = new AbortController(), stop = () => once.abort();
      const alive = () => {
        clearTimeout(silence);
        silence = setTimeout(stop, 15000);
      };
      mine.signal.addEventListener("abort", stop);
      alive();
      try {
        const answer = await ask("events", { signal: once.signal });
        if ([401, 403].includes(answer.status)) {
          link("away", "not signed in");
          clearTimeout(silence);
          if (key !== null && answer.status === 401) sessionStorage.removeItem(KEPT);
          return wantKey(await complaint(answer));
        }
        if (!answer.ok) throw new Error(await complaint(answer));
        show(at("trouble"), false);
        for await (const told of events(answer.body, alive)) {
          pause = 500;
          link("live", "live");
          take(told);
        }
      } catch (error) {
        if (!mine.signal.aborted && error.name === "Error") {
          put(at("trouble"), error.message);
          show(at("trouble"), true);
        }
      }
      clearTimeout(silence);
      if (mine.signal.aborted) return;
      link("away", status?.draining ? "shutting down" : "no answer, trying again");
      await sleep(pause);
    }
  };
  // A tab that nobody looks at does not listen either.
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) {
      hiddenTimer = setTimeout(() => {
        following?.abort();
        following = null;
        link("away", "paused");
      }, 30000);
    } else if (following === null) follow();
  });

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

  // What engines print, where the proxy tells it.
  let tellsOutput = null;
  const readOutput = async (id, card) => {
    const target = status?.targets.find((one) => keyOf(one) === id);
    if (target === undefined || tellsOutput === false || card.reading) return;
    const name = idOf(target);
    card.reading = true;
    try {
      const answer = await ask("logs?lines=200" + (name === null ? "" : "&model=" + encodeURIComponent(name)));
      if (answer.status === 404 && (await answer.clone().json()).error?.code === "not_found") tellsOutput = false;
      else {
        tellsOutput = true;
        const text = answer.ok ? (await answer.text()).trimEnd() : await complaint(answer);
        const below = card.output.scrollHeight - card.output.scrollTop - card.output.clientHeight < 8;
        put(card.output, text || "It has printed nothing yet.");
        if (below) card.output.scrollTop = card.output.scrollHeight;
        card.lastLine = answer.ok ? text.slice(text.lastIndexOf("\n") + 1) : "";
      }
    } catch {
      return;
    } finally {
      card.reading = false;
    }
    showOutput();
  };
  const showOutput = () => {
    for (const [id, card] of cards) {
      show(card.details, tellsOutput === true);
      const phase = card.root.dataset.phase;
      const last = ["waking", "failed"].includes(phase) && card.lastLine ? ": " + card.lastLine : "";
      put(card.summary, "Engine’s output" + last);
    }
  };

  // Who waits.
  const waiters = new Map();
  let held = { count: 0, requests: [] }, heldAt = 0, heldTimer = null, several = false;
  const cell = (label, className = "") => el("td", { role: "cell", "data-label": label, ...(className ? { class: className } : {}) });
  const makeWaiter = (id) => {
    const row = { place: cell("Place", "number place bare"), model: cell("Model", "of-model bare"), client: cell("Client", "client bare"),
      request: cell("Request", "full bare"), why: cell("Why", "full bare"), waited: cell("Waited", "number"), ready: cell("Let in", "number"), leaves: cell("Gives up", "number"), act: cell("", "act bare") };
    row.path = el("code");
    row.request.append(row.path);
    if (id !== null) {
      row.button = el("button", { type: "button", class: "plain" }, "Cancel");
      row.button.addEventListener("click", () => cancel(id, row));
      row.act.append(row.button);
    }
    row.root = el("tr", { role: "row" }, row.place, row.model, row.client, row.request, row.why, row.waited, row.ready, row.leaves, row.act);
    return row;
  };
  const cancel = async (id, row) => {
    row.button.disabled = true;
    put(at("trouble"), "");
    show(at("trouble"), false);
    let wrong = NO_ANSWER;
    try {
      const answer = await ask("operations/cancel", { method: "POST", body: JSON.stringify({ id }) });
      if (answer.ok) {
        announce("The request was cancelled.");
        return readWaiting();
      }
      wrong = await complaint(answer);
      if (answer.status === 401) wantKey(wrong);
    } catch {}
    row.button.disabled = false;
    put(at("trouble"), wrong);
    show(at("trouble"), true);
    readWaiting();
  };
  const readWaiting = async () => {
    clearTimeout(heldTimer);
    heldTimer = setTimeout(() => { heldTimer = null }, 1000);
    try {
      const answer = await ask("requests");
      if (!answer.ok) return;
      held = await answer.json();
      heldAt = performance.now();
      showWaiting();
    } catch {}
  };
  const showWaiting = () => {
    const past = (performance.now() - heldAt) / 1000, seen = new Set(), rows = [];
    for (const one of held.requests) {
      const id = one.id ?? one.target + " " + one.place;
      seen.add(id);
      if (!waiters.has(id)) waiters.set(id, makeWaiter(one.id));
      const row = waiters.get(id), target = status?.targets.find((other) => other.target === one.target);
      rows.push(row.root);
      put(row.place, String(one.place));
      put(row.model, target === undefined ? one.target : nameOf(target));
      put(row.client, [one.key, one.client].filter(Boolean).join(" · ") || "an operator");
      put(row.path, one.method + " " + one.path);
      put(row.why, one.why + (one.priority === "normal" ? "" : ", " + one.priority + " priority"));
      put(row.waited, duration(one.waited_seconds + past));
      put(row.ready, one.eta_seconds === null ? "–" : one.eta_seconds > past ? about(one.eta_seconds - past) : "any moment");
      put(row.leaves, "in " + duration(Math.max(0, one.leaves_in_seconds - past)));
      if (row.button) set(row.button, "aria-label", "Cancel " + one.method + " " + one.path + " at place " + one.place);
    }
    for (const [id, row] of waiters) if (!seen.has(id)) { row.root.remove(); waiters.delete(id) }
    order(at("waiting"), rows);
    show(at("waiting-table"), rows.length > 0);
    show(at("nobody-waits"), rows.length === 0);
    put(at("waiting-count"), held.count ? String(held.count) : "");
    const more = held.count - rows.length;
    put(at("waiting-more"), more > 0 ? "The next " + rows.length + " are shown, and " + more + " more wait." : "");
    show(at("waiting-more"), more > 0);
  };
  const order = (parent, nodes) => {
    nodes.forEach((node, index) => { if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null) });
  };

  // The starts that are over.
  const FEW = 8;
  let starts = [], all = false, startsSeen = "";
  for (const [stage, words] of Object.entries(STAGES)) {
    const item = el("li", {}, words);
    item.style.setProperty("--of", "var(--" + stage + ")");
    at("legend").append(item);
  }
  const readStarts = async () => {
    try {
      const answer = await ask("starts");
      if (!answer.ok) return;
      starts = (await answer.json()).targets.flatMap((target) => target.starts.map((start) => ({ ...start, of: target })));
      starts.sort((one, other) => one.began < other.began ? 1 : one.began > other.began ? -1 : 0);
      showStarts();
    } catch {}
  };
  const began = (text) => {
    const time = new Date(text), today = new Date().toDateString() === time.toDateString();
    const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    return today ? time.toLocaleTimeString([], { ...clock, second: "2-digit" }) :
      time.toLocaleDateString([], { month: "short", day: "numeric" }) + " " + time.toLocaleTimeString([], clock);
  };
  const makeStart = (start, longest) => {
    const target = status?.targets.find((other) => other.target === start.of.target);
    const bar = el("div", { class: "stages", role: "img" });
    fillStages(bar, start);
    bar.style.width = Math.max(2, 100 * start.total_seconds / longest) + "%";
    const where = cell("Where the time went", "full bare");
    where.append(bar);
    if (start.outcome !== "ready") {
      const stage = STAGES[start.stopped_at] ?? start.stopped_at;
      where.append(el("p", { class: "why" }, "Ended while " + stage + (start.detail ? " (" + start.detail + ")" : "") + (start.cause ? ": " + start.cause : ".")));
    }
    const row = el("tr", { role: "row" }, cell("Began", "bare"), cell("Model", "of-model bare"), cell("Outcome", "bare"), cell("Took", "number bare"), where);
    row.children[0].append(el("time", { datetime: start.began }, began(start.began)));
    row.children[1].append(target === undefined ? start.of.model ?? start.of.target : nameOf(target));
    row.children[2].append(el("span", { class: "outcome", "data-is": start.outcome }, start.outcome));
    row.children[3].append(took(start.total_seconds));
    return row;
  };
  const showStarts = () => {
    const shown = all ? starts : starts.slice(0, FEW), longest = Math.max(0.001, ...shown.map((start) => start.total_seconds));
    at("starts").replaceChildren(...shown.map((start) => makeStart(start, longest)));
    show(at("no-starts"), starts.length === 0);
    show(at("starts-table"), starts.length > 0);
    put(at("starts-more"), "Show all " + starts.length);
    show(at("starts-more"), !all && starts.length > FEW);
  };
  at("starts-more").addEventListener("click", () => { all = true; showStarts() });

  // What sleep saves, where the proxy tells it.
  let tellsSavings = true;
  const readSavings = async () => {
    if (!tellsSavings || document.hidden) return;
    try {
      const answer = await ask("savings");
      if (answer.status === 404) tellsSavings = false;
      if (answer.ok) showSavings(await answer.json());
    } catch {}
  };
  const hours = (count) => count.toLocaleString([], { maximumFractionDigits: count < 100 ? 1 : 0 });
  const showSavings = (told) => {
    const money = (amount) => {
      if (amount === null) return "–";
      try {
        return amount.toLocaleString([], { style: "currency", currency: told.currency });
      } catch {
        return amount.toFixed(2) + " " + told.currency;
      }
    };
    put(at("total-asleep"), hours(told.total.asleep_gpu_hours));
    show(at("total-asleep-tile"), true);
    put(at("total-saved"), money(told.total.saved));
    show(at("total-saved-tile"), told.total.saved !== null);
    put(at("savings-since"), "since " + new Date(told.since).toLocaleDateString([], { dateStyle: "medium" }));
    put(at("savings-price"), told.gpu_hour_price === null ? "Tell the proxy what one costs, and it says what that saved." :
      "One costs " + money(told.gpu_hour_price) + ".");
    const row = (name, gpus, tally, days) => {
      const cells = [cell("GPUs", "number"), cell("Hours asleep", "number"), cell("Hours awake", "number"), cell("Saved", "number"),
        cell("Wakes", "number"), cell("Callers waited", "number"), cell("Hours asleep, by day", "full bare")];
      const texts = [gpus === null ? "–" : String(gpus), hours(tally.asleep_gpu_hours), hours(tally.awake_gpu_hours), money(tally.saved), String(tally.wakes),
        tally.callers_waited ? tally.callers_waited + ", " + duration(tally.waited_seconds) + " in all" : "none"];
      texts.forEach((text, index) => cells[index].append(text));
      const bars = el("div", { class: "days", role: "img" }), most = Math.max(0.001, ...days.map((day) => day.asleep_gpu_hours));
      bars.setAttribute("aria-label", days.map((day) => day.day + " " + hours(day.asleep_gpu_hours)).join(", ") || "no day yet");
      for (const day of days) {
        const part = el("span", { title: day.day + ": " + hours(day.asleep_gpu_hours) + " asleep, " + hours(day.awake_gpu_hours) + " awake" });
        part.style.height = 100 * day.asleep_gpu_hours / most + "%";
        bars.append(part);
      }
      cells[6].append(bars);
      return el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, name), ...cells);
    };
    const rows = told.models.map((one) => row(one.model ?? one.target, one.gpus, one.total, one.days.slice(-14)));
    if (rows.length > 1) rows.push(row("All", null, told.total, []));
    at("savings").replaceChildren(...rows);
    show(at("savings-section"), true);
  };

  // All of it, whenever something is told and once a second.
  const announce = (words) => put(at("news"), words);
  const take = (told) => {
    const before = new Map(status?.targets.map((target) => [keyOf(target), target.phase]));
    status = told;
    heard = performance.now();
    for (const target of told.targets) {
      const was = before.get(keyOf(target));
      if (was !== undefined && was !== target.phase) announce(nameOf(target) + ": " + (PHASES[target.phase] ?? target.phase));
    }
    render();
    const past = JSON.stringify(told.targets.map((target) => [target.target, target.last_start]));
    if (past !== startsSeen) {
      startsSeen = past;
      readStarts();
      readSavings();
    }
    const waiting = told.targets.reduce((sum, target) => sum + target.waiting, 0);
    if ((waiting || held.count) && heldTimer === null) readWaiting();
    if (tellsOutput === null && told.targets.length) {
      const [id, card] = cards.entries().next().value;
      readOutput(id, card);
    }
  };
  const render = () => {
    if (status === null) return;
    const targets = status.targets, sum = (of) => targets.reduce((total, target) => total + of(target), 0);
    several = targets.length > 1;
    document.body.classList.toggle("one", !several);
    const others = status.peers?.others.length ?? 0;
    put(at("version"), status.version + (status.peers ? " · " + (others ? "one of " + (others + 1) + " proxies, " : "") +
      (status.peers.leads ? "leads" : "follows") : ""));
    if (status.trouble !== null || status.peers?.trouble || status.draining) {
      put(at("trouble"), status.draining ? "This proxy is shutting down. What is under way ends first." : status.trouble !== null ?
        "The models are not known: " + sentence(status.trouble) : "The other proxies cannot be told of callers here, so nothing is put to sleep: " + sentence(status.peers.trouble));
      show(at("trouble"), true);
      at("trouble").dataset.of = "status";
    } else if (at("trouble").dataset.of === "status") {
      delete at("trouble").dataset.of;
      show(at("trouble"), false);
    }
    const awake = sum((target) => target.phase === "ready" ? 1 : 0);
    put(at("total-awake"), String(awake));
    put(at("total-models"), " of " + targets.length);
    put(at("total-waiting"), String(sum((target) => target.waiting)));
    put(at("total-in-flight"), String(sum((target) => target.in_flight)));
    document.title = (sum((target) => target.waiting) ? "(" + sum((target) => target.waiting) + ") " : "") + "vllm-chill";
    const roots = targets.map((target) => {
      const id = keyOf(target);
      if (!cards.has(id)) cards.set(id, makeCard(id));
      const card = cards.get(id);
      showCard(card, target);
      return card.root;
    });
    for (const [id, card] of cards) if (!roots.includes(card.root)) { card.root.remove(); cards.delete(id) }
    put(at("no-models"), "There is no model yet. One that is added to the catalogue appears here.");
    show(at("no-models"), targets.length === 0);
    order(at("models"), [at("no-models"), ...roots]);
    if (tellsOutput !== null) showOutput();
  };
  setInterval(() => {
    render();
    if (held.count) showWaiting();
  }, 1000);
  setInterval(() => {
    if (tellsOutput && !document.hidden) {
      for (const [id, card] of cards) if (card.details.open || card.root.dataset.phase === "waking") readOutput(id, card);
    }
  }, 2000);
  setInterval(readSavings, 60000);
  follow();
}
