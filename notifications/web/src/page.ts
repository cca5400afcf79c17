import { toggleTheme } from "./theme.js";

/** What the frame of the hub's own pages does beside the components: the theme's toggle, the menus, going to a room. */
export function bindFrame(): void {
  for (const button of document.querySelectorAll("[data-hub-theme]")) button.addEventListener("click", toggleTheme);
  for (const menu of document.querySelectorAll<HTMLDetailsElement>("details[data-hub-menu]")) {
    document.addEventListener("click", (event) => {
      if (!menu.contains(event.target as Node)) menu.open = false;
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      event.preventDefault();
      menu.open = false;
      menu.querySelector("summary")?.focus();
    });
  }
  for (const form of document.querySelectorAll<HTMLFormElement>("form[data-hub-room]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const room = String(new FormData(form).get("room") ?? "").trim();
      if (room) location.assign(`${form.action}${encodeURIComponent(room)}/`);
    });
  }
}
