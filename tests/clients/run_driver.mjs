// Runs the driver's checks in Node.js: node run_driver.mjs PACKAGE
import { checks } from "./driver.mjs";
import { report } from "./report.mjs";

const driver = await import(process.argv[2]);
console.log(await report(checks(driver, process.env)));
