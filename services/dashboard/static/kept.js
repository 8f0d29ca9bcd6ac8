// What outlives the page in this tab. Names begin with equipoise-draft: page.js takes them away when somebody signs out.
export function keep(name, value) {
  try {
    if (!name) return;
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, JSON.stringify(value));
  } catch { /* no room, or not allowed: then it is not kept */ }
}

export function kept(name) {
  try {
    return name ? JSON.parse(sessionStorage.getItem(name)) : null;
  } catch { return null; }
}
