"use strict";
// The text of a data block of the page: base64 of gzip, inflated by the browser itself.
const unpacked = async id => {
  const binary = atob(document.getElementById(id).textContent.trim());
  const bytes = Uint8Array.from(binary, character => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
};
// What cannot be shown is said; figures' numbers and the tables of extremes stand on the page anyway.
const cannotShow = error => {
  document.getElementById("notice").hidden = false;
  console.error(error);
};
