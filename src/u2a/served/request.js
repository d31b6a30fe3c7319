// What every served page does alike: it asks its own server, says what went wrong, and ends the server.
"use strict";

const at = (id) => document.getElementById(id);

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The server has ended: nothing more is done or saved. Start u2a again to go on.");
  }
  const isJson = (reply.headers.get("content-type") || "").startsWith("application/json");
  const found = isJson ? await reply.json() : { error: await reply.text() };
  if (!reply.ok) throw new Error(found.error || `The server refused this (${reply.status}).`);
  return found;
}

function showProblem(error) {
  at("problem").textContent = error ? error.message : "";
}

function closeButton(status) {
  at("close").addEventListener("click", async () => {
    try {
      await ask("close", {});
      at("close").disabled = true;
      at(status).textContent += " The server has ended; this page can be closed.";
    } catch (error) {
      showProblem(error);
    }
  });
}
