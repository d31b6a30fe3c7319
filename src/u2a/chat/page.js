// A chat with several models. Their words reach the page through textContent alone.
"use strict";

let names = [];

function made(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function showModels() {
  const heading = made("p", "place", `Answering: ${names.join(", ")}`);
  at("models").replaceChildren(heading);
}

function showTurn(turn) {
  const exchange = made("article", "exchange");
  const answers = made("div", "side");
  names.forEach((name, index) => {
    const answer = made("section");
    answer.setAttribute("aria-label", name);
    answer.append(made("h2", "", name), made("p", "turn answered", turn.answers[index] || "(nothing)"));
    answers.append(answer);
  });
  exchange.append(made("p", "turn asked", turn.prompt), answers);
  at("models").append(exchange);
  exchange.scrollIntoView({ block: "nearest" });
}

async function busily(work) {
  const controls = ["send", "reset", "text"].map(at);
  for (const each of controls) each.disabled = true;
  at("state").textContent = "The models are answering…";
  try {
    await work();
    showProblem(null);
  } catch (error) {
    showProblem(error);
  }
  at("state").textContent = "";
  for (const each of controls) each.disabled = false;
  at("text").focus();
}

function send() {
  const text = at("text").value;
  if (!text.trim()) return;
  busily(async () => {
    showTurn(await ask("ask", { text }));
    at("text").value = "";
  });
}

async function begin() {
  const about = await ask("about");
  names = about.models;
  showModels();
  about.turns.forEach(showTurn);
  at("words").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  at("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  at("reset").addEventListener("click", () => busily(async () => {
    await ask("reset", {});
    showModels();
  }));
  closeButton("state");
  at("text").focus();
}

begin().catch(showProblem);
