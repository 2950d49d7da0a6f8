// Makes the replica set and its users, once; run again, it finds them and is done.
// Runs beside mongo-1, in its network: only from localhost may the first user be made
// (MongoDB's "localhost exception"), and only while there is none.
const fs = require("fs");

const secret = (name) => fs.readFileSync(`/run/secrets/${name}`, "utf8").trim();
const admin = db.getSiblingDB("admin");
const members = [1, 2, 3].map((n) => ({
  _id: n - 1,
  host: `mongo-${n}:27017`,
  // The first primary is the one that we talk to.
  priority: n === 1 ? 2 : 1,
}));

function entered() {
  try {
    return admin.auth("root", secret("mongo_root_password")).ok === 1;
  } catch (error) {
    return false;
  }
}

function waitForPrimary() {
  for (let tries = 0; tries < 120; tries += 1) {
    if (db.hello().isWritablePrimary) {
      return;
    }
    sleep(500);
  }
  throw new Error("mongo-1 has not become primary within 60 s; see the log of mongo-1");
}

function setUser(user, role, password) {
  const roles = [{ role, db: "everbus" }];
  if (admin.getUser(user) === null) {
    admin.createUser({ user, pwd: password, roles });
  } else {
    admin.updateUser(user, { pwd: password, roles });
  }
}

if (!entered()) {
  try {
    rs.initiate({ _id: "everbus", members });
  } catch (error) {
    if (error.codeName !== "AlreadyInitialized") {
      throw error;
    }
  }
  waitForPrimary();
  admin.createUser({ user: "root", pwd: secret("mongo_root_password"), roles: ["root"] });
  if (!entered()) {
    throw new Error("root cannot log in though it was just made");
  }
}
// After a failover another member may be primary, and users are there already.
if (db.hello().isWritablePrimary) {
  setUser("everbus", "readWrite", secret("mongo_password"));
  setUser("everbus-edge", "read", secret("mongo_edge_password"));
}
