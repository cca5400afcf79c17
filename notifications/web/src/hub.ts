import { HubAlertCount } from "./components/alert-count.js";
import { HubAlerts } from "./components/alerts.js";
import { HubBanners } from "./components/banners.js";
import { HubBell } from "./components/bell.js";
import { HubChart } from "./components/chart.js";
import { HubChat } from "./components/chat.js";
import { HubConnection } from "./components/connection.js";
import { HubCopy } from "./components/copy.js";
import { HubFeed } from "./components/feed.js";
import { HubPresence } from "./components/presence.js";
import { HubTasks } from "./components/tasks.js";
import { HubTime } from "./components/time.js";
import { HubToasts } from "./components/toasts.js";
import { HubValue } from "./components/value.js";
import { bindFrame } from "./page.js";

export { type Hub, hub } from "./connection.js";
export type { Cursor, HubEvent, Sender } from "./event.js";
export type { Link } from "./status.js";
export type { Follower, Refusal, Topic } from "./topic.js";

const elements: Record<string, CustomElementConstructor> = {
  "hub-time": HubTime,
  "hub-copy": HubCopy,
  "hub-connection": HubConnection,
  "hub-banners": HubBanners,
  "hub-alert-count": HubAlertCount,
  "hub-bell": HubBell,
  "hub-toasts": HubToasts,
  "hub-alerts": HubAlerts,
  "hub-tasks": HubTasks,
  "hub-chat": HubChat,
  "hub-presence": HubPresence,
  "hub-feed": HubFeed,
  "hub-value": HubValue,
  "hub-chart": HubChart,
};

for (const [name, element] of Object.entries(elements)) {
  if (!customElements.get(name)) customElements.define(name, element);
}
bindFrame();
