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
