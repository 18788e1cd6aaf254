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
