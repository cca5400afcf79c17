const [log, form] = [document.querySelector("#log"), document.querySelector("#form")];
const say = (text) => log.append(Object.assign(document.createElement("p"), { textContent: text }));
const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/ws/socket-server/");
socket.onmessage = (event) => {
  const { author, message } = JSON.parse(event.data);
  say(author ? `${author}: ${message}` : message);
};
socket.onclose = () => say("The connection is closed. Reload the page.");
form.onsubmit = (event) => {
  event.preventDefault();
  socket.send(JSON.stringify({ message: form.elements.message.value }));
  form.reset();
};
