//! Enums whose variants each are one word: on the command line, in JSON, in the
//! database, in labels and logs.

/// Defines such an enum with `ALL`, `word` and `parse`.
macro_rules! words {
    ($(#[$about:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All of them, in their order.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The variant of a word.
            pub fn parse(word: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|of| of.word() == word)
            }
        }
    };
}
pub(crate) use words;
