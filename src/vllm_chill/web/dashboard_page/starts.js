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
