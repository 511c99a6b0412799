// Swagger UI on the service's own description; nothing is loaded from elsewhere, and nothing is validated elsewhere.

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
