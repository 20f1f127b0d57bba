// What is live is sent as HTML by the server, already escaped; here it only takes the place of what was there before.
"use strict";

const busy = (element) => {
  const selection = getSelection();
  return !selection.isCollapsed && element.contains(selection.anchorNode);
};

// Focus, and what is unfolded, stay where they are.
const place = (element) => {
  const twins = [...element.ownerDocument.querySelectorAll(element.tagName)].filter((one) => one.outerHTML === element.outerHTML);
  return twins.length ? [element.tagName, element.outerHTML, twins.indexOf(element)] : null;
};

const show = (html) => {
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const fresh of template.content.querySelectorAll("[data-live]")) {
    const old = document.getElementById(fresh.id);
    if (!old || old.innerHTML === fresh.innerHTML || busy(old)) continue;
    const focused = old.contains(document.activeElement) ? place(document.activeElement) : null;
    const open = [...old.querySelectorAll("details")].map((one) => one.open);
    old.innerHTML = fresh.innerHTML;
    old.querySelectorAll("details").forEach((one, at) => (one.open = open[at] ?? one.open));
    if (focused) {
      const [tag, text, at] = focused;
      [...document.querySelectorAll(tag)].filter((one) => one.outerHTML === text)[at]?.focus({ preventScroll: true });
    }
  }
};

// Only while somebody looks: a browser has six connections to a host, for all of its tabs.
let source = null;
const listen = () => {
  const wanted = document.querySelector("[data-live-page]") && document.visibilityState === "visible";
  if (wanted && !source) {
    source = new EventSource("/live?at=" + encodeURIComponent(location.pathname + location.search));
    source.onmessage = (event) => show(event.data);
  } else if (!wanted && source) {
    source.close();
    source = null;
  }
};
document.addEventListener("visibilitychange", listen);
addEventListener("pagehide", () => source?.close());
listen();

for (const form of document.querySelectorAll("form[data-json]")) {
  const field = form.elements[form.dataset.json];
  const check = () => {
    let why = "";
    if (field.value.trim() || field.name === "body") {
      try { JSON.parse(field.value); } catch (error) { why = `That is no JSON, which this service takes: ${error.message}`; }
    }
    field.setCustomValidity(why);
  };
  field.addEventListener("input", check);
  form.addEventListener("submit", check, true);
  check();
}

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.querySelector("header input").focus();
  }
});
