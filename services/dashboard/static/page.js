// What every page needs besides NiceGUI: the chosen theme, and a way back to the sign-in page when the session is over.
(() => {
  const KEY = "equipoise-theme";
  const apply = (theme) => {
    if (window.Quasar) window.Quasar.Dark.set(theme === "auto" ? "auto" : theme === "dark");
    document.documentElement.dataset.theme = theme;
  };
  window.equipoiseTheme = () => {
    const order = ["auto", "light", "dark"];
    const next = order[(order.indexOf(localStorage.getItem(KEY) || "auto") + 1) % 3];
    localStorage.setItem(KEY, next);
    apply(next);
    name();
  };
  const name = () => {
    const theme = localStorage.getItem(KEY) || "auto";
    for (const button of document.querySelectorAll(".theme-button")) {
      button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[theme];
      button.setAttribute("aria-label", `Theme: ${theme}. Change it`);
    }
  };
  addEventListener("submit", (event) => {
    if (new URL(event.target.action).pathname !== "/signout") return;
    for (const key of Object.keys(sessionStorage)) if (key.startsWith("equipoise-draft")) sessionStorage.removeItem(key);
  });
  // Paper is light. The charts, whose listeners come after this one, are drawn in its colours, and anew when it is over.
  addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; });
  addEventListener("afterprint", () => {
    apply(localStorage.getItem(KEY) || "auto");
    document.dispatchEvent(new Event("equipoise:theme"));
  });
  addEventListener("DOMContentLoaded", () => {
    apply(localStorage.getItem(KEY) || "auto");
    const wait = setInterval(() => {
      if (!window.socket || !document.querySelector(".theme-button")) return;
      clearInterval(wait);
      name();
      window.socket.on("connect_error", async () => {
        try {
          const answer = await fetch(location.href, { redirect: "manual", cache: "no-store" });
          if (answer.type === "opaqueredirect") location.reload();
        } catch { /* the server is away: the banner says so, and the socket goes on trying */ }
      });
    }, 50);
  });
})();
