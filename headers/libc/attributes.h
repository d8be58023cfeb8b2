/* Turns GNU attributes into C that pycparser understands; included before anything else.
 *
 * The first word of an attribute is pasted to a macro name, so that each attribute gets its own rule.
 * `deprecated` stands behind a declarator: there it becomes an initializer, which the parser reads as
 * the hint.  An attribute without a rule is left in the text and stops the build by its name. */
#define __attribute__(x) LLAMACFFI_ATTRIBUTE x
#define LLAMACFFI_ATTRIBUTE(...) LLAMACFFI_ATTRIBUTE_NAMED(__VA_ARGS__)
#define LLAMACFFI_ATTRIBUTE_NAMED(...) llamacffi_attribute_##__VA_ARGS__
#define llamacffi_attribute_deprecated(hint) = hint
#define llamacffi_attribute_visibility(x)
#define llamacffi_attribute_format(...)
#define __extension__
