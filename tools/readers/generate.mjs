// Continues tokens with llama.cpp, always taking the likeliest: node generate.mjs '{"file": …, "tokens": […], "count": 10}'
import {getLlama} from "node-llama-cpp";

const {file, tokens, count} = JSON.parse(process.argv[2]);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: 128});
const found = [];
for await (const token of context.getSequence().evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
    found.push(token);
    if (found.length === count) break;
}
console.log(JSON.stringify(found));
process.exit(0);
