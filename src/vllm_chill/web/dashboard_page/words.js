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
