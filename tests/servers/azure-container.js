// Creates a container in Azurite, which no plain HTTP client can: the request must be signed.
//
// azure-container.js PORT ACCOUNT KEY CONTAINER
const crypto = require("crypto");
const http = require("http");

const [port, account, key, container] = process.argv.slice(2);
const path = `/${account}/${container}`;
const headers = { "x-ms-date": new Date().toUTCString(), "x-ms-version": "2021-12-02" };
const canonicalHeaders = Object.entries(headers).map(([name, value]) => `${name}:${value}\n`).join("");
// Method, eleven empty standard headers, the x-ms- headers, then account and path (the account twice: it is the first
// component of an emulator's path) and the query.
const text = `PUT\n${"\n".repeat(11)}${canonicalHeaders}/${account}${path}\nrestype:container`;
const signature = crypto.createHmac("sha256", Buffer.from(key, "base64")).update(text, "utf8").digest("base64");
headers.Authorization = `SharedKey ${account}:${signature}`;
headers["Content-Length"] = 0;

const request = http.request({ host: "127.0.0.1", port, method: "PUT", path: `${path}?restype=container`, headers }, (answer) => {
    let body = "";
    answer.on("data", (chunk) => (body += chunk));
    answer.on("end", () => {
        if (answer.statusCode === 201) return;
        console.error(`the container ${container} could not be created (HTTP ${answer.statusCode}): ${body}`);
        process.exitCode = 1;
    });
});
request.on("error", (error) => {
    console.error(`Azurite does not answer on 127.0.0.1:${port}: ${error.message}`);
    process.exitCode = 1;
});
request.end();
