// What engines print, where the proxy tells it.
let tellsOutput = null;
const readOutput = async (id, card) => {
  const target = status?.targets.find((one) => keyOf(one) === id);
  if (target === undefined || !tellsOutput || card.reading) return;
  const name = idOf(target);
  card.reading = true;
  try {
    const answer = await ask("logs?lines=200" + (name === null ? "" : "&model=" + encodeURIComponent(name)));
    const text = answer.ok ? (await answer.text()).trimEnd() : await complaint(answer);
    const below = card.output.scrollHeight - card.output.scrollTop - card.output.clientHeight < 8;
    put(card.output, text || "It has printed nothing yet.");
    if (below) card.output.scrollTop = card.output.scrollHeight;
    card.lastLine = answer.ok ? text.slice(text.lastIndexOf("\n") + 1) : "";
  } catch {
    return;
  } finally {
    card.reading = false;
  }
  showOutput();
};
const findOutput = async () => {
  const name = status.targets.length ? idOf(status.targets[0]) : null;
  try {
    const answer = await ask("logs?lines=1" + (name === null ? "" : "&model=" + encodeURIComponent(name)));
    tellsOutput = answer.status !== 404 || (await answer.json()).error?.code !== "not_found";
  } catch {}
};
const showOutput = () => {
  for (const [id, card] of cards) {
    show(card.details, tellsOutput === true);
    const phase = card.root.dataset.phase;
    const last = ["waking", "failed"].includes(phase) && card.lastLine ? ": " + card.lastLine : "";
    put(card.summary, "Engine’s output" + last);
  }
};
const followOutput = () => {
  if (!tellsOutput || document.hidden) return;
  for (const [id, card] of cards) {
    const phase = card.root.dataset.phase, news = phase !== card.read;
    if (card.details.open || phase === "waking" || (phase === "failed" && news)) readOutput(id, card);
    card.read = phase;
  }
};
