// All of it, whenever something is told and once a second.
const announce = (words) => put(at("news"), words);
const take = (told) => {
  if (told !== status) heard = performance.now();
  const before = new Map(status?.targets.map((target) => [keyOf(target), target.phase]));
  let changed = false;
  status = told;
  for (const target of told.targets) {
    const was = before.get(keyOf(target));
    if (was === undefined || was === target.phase) continue;
    announce(nameOf(target) + ": " + (PHASES[target.phase] ?? target.phase));
    changed = true;
  }
  begun ??= begin();
  if (document.body.classList.contains("asking")) return;
  render();
  if (changed) followOutput();
  const past = JSON.stringify(told.targets.map((target) => [target.target, target.last_start]));
  if (past !== startsSeen) {
    startsSeen = past;
    readStarts();
    readSavings();
  }
  const waiting = told.targets.reduce((sum, target) => sum + target.waiting, 0);
  if ((waiting || held.count) && heldTimer === null) readWaiting();
};
// All is shown at once, so that nothing moves what is read already.
let begun = null;
const begin = async () => {
  await Promise.race([Promise.all([findOutput(), readStarts(), readSavings(), readWaiting()]), sleep(1500)]);
  document.body.classList.remove("asking");
  take(status);
  followOutput();
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
  showOutput();
};
setInterval(() => {
  if (document.body.classList.contains("asking")) return;
  render();
  if (held.count) showWaiting();
}, 1000);
setInterval(followOutput, 2000);
setInterval(readSavings, 60000);
follow();
