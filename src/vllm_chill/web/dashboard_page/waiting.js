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
