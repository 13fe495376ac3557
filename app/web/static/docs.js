// Swagger UI over this service's own description. The bundle, loaded before, defines the global.

window.SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  layout: "BaseLayout",
  validatorUrl: null, // else its badge asks another server
  presets: [window.SwaggerUIBundle.presets.apis],
});
