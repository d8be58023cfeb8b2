/* Turns GNU attributes into C that pycparser understands; included before anything else.
 *
 * The first word of an attribute is pasted to a macro name, so that each attribute gets its own rule.
 * `deprecated` stands behind a declarator: there the preprocessing makes it an initializer, which the
 * parser reads as the hint.  An attribute without a rule is left in the text and stops the build by its name:
 * it may change the layout of a struct. */
#define __attribute__(x) LLAMACFFI_ATTRIBUTE x
#define __attribute __attribute__
#define LLAMACFFI_ATTRIBUTE(...) LLAMACFFI_ATTRIBUTE_1(__VA_ARGS__)
#define LLAMACFFI_ATTRIBUTE_1(one, ...) \
    llamacffi_attribute_##one __VA_OPT__(LLAMACFFI_ATTRIBUTE_2(__VA_ARGS__))
#define LLAMACFFI_ATTRIBUTE_2(one, ...) \
    llamacffi_attribute_##one __VA_OPT__(llamacffi_attribute_as_the_third_of_a_list)
#define llamacffi_attribute_deprecated(hint) LLAMACFFI_DEPRECATED(hint)
#define llamacffi_attribute___deprecated__(hint) LLAMACFFI_DEPRECATED(hint)
#define llamacffi_attribute_visibility(x)
#define llamacffi_attribute_format(...)

/* Other spellings of C. */
#define __extension__
#define __inline inline
#define __inline__ inline
#define __restrict restrict
#define __restrict__ restrict
