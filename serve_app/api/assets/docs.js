"use strict";

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  // The online validator cannot be reached from here.
  validatorUrl: null,
});
