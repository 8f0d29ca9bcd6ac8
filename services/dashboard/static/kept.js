// What outlives the page in this tab. Names begin with equipoise-draft: page.js takes them away when somebody signs out.
export function keep(name, value) {
  try {
    if (!name) return;
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, JSON.stringify(value));
  } catch { /* no room, or not allowed: then it is not kept */ }
}

export function kept(name) {
  let found = null;
  try {
    found = name ? sessionStorage.getItem(name) : null;
    return JSON.parse(found);
  } catch { return found; } // a page of an earlier version kept text as it was
}
