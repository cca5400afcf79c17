"""A list from the database to which the page's script adds what is published, with the kit and without it."""

from __future__ import annotations

from django.contrib.auth.models import Group
from django.http import HttpRequest, HttpResponse
from django.template import RequestContext, Template
from django.urls import include, path

from notifications.events import publish
from notifications.web.cursors import with_cursors

FRAME = """{% load hub %}<!doctype html>
<html lang="en">
<head><title>Groups</title><link rel="icon" href="data:,">SCRIPT</head>
<body>
<ul>{% for name in names %}<li>{{ name }}</li>{% endfor %}</ul>
<script type="module" nonce="{{ csp_nonce }}">
  const list = document.querySelector("ul");
  const show = (name) => list.append(Object.assign(document.createElement("li"), { textContent: name }));
  const load = () => show("to be loaded again");
  FOLLOW
</script>
</body>
</html>"""

WITH_THE_KIT = """
  import { hub } from "hub";
  window.client = hub.connect();
  hub.topic("open:{{ name }}").follow({ event: (event) => show(event.data.name), reset: load });
"""

WITH_THE_SDK = """
  const topic = "open:{{ name }}";
  const cursors = JSON.parse(document.getElementById("hub-cursors").textContent);
  window.client = new Centrifuge(`ws://${location.host}/connection/websocket`);
  const subscription = client.newSubscription(topic, { since: cursors[topic] });
  subscription.on("subscribed", ({ wasRecovering, recovered }) => {
    if (!wasRecovering || !recovered) load();
  });
  subscription.on("publication", ({ data }) => show(data.name));
  subscription.subscribe();
  client.connect();
"""

SDK = '{% hub_cursors %}<script src="/centrifuge.js" nonce="{{ csp_nonce }}"></script>'

KINDS = {
    "kit": Template(FRAME.replace("SCRIPT", "{% hub_script %}").replace("FOLLOW", WITH_THE_KIT)),
    "sdk": Template(FRAME.replace("SCRIPT", SDK).replace("FOLLOW", WITH_THE_SDK)),
}


@with_cursors("open:{name}")
def groups(request: HttpRequest, kind: str, name: str) -> HttpResponse:
    """The page; in its time, after its query, a group is made that it does not show."""
    names = list(Group.objects.filter(name__startswith=name).order_by("pk").values_list("name", flat=True))
    late = Group.objects.create(name=f"{name} {len(names)}")
    publish(f"open:{name}", "group.created", {"name": late.name})
    return HttpResponse(KINDS[kind].render(RequestContext(request, {"names": names, "name": name})))


def blind(request: HttpRequest, kind: str, name: str) -> HttpResponse:
    """The page as it is when the log cannot be reached."""
    request.hub_cursors = {f"open:{name}": None}  # type: ignore[attr-defined]
    return groups(request, kind=kind, name=name)


urlpatterns = [
    path("own/<str:kind>/<str:name>/", groups),
    path("blind/<str:kind>/<str:name>/", blind),
    path("", include("hub.urls")),
]
