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
  put(at("sign-in-why"), key === null ? why.replace(/;.*$/, ".") : why); // how programs send one is no help here
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
